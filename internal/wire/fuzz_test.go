// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
)

// FuzzPolicy feeds bytes as they come off the stream. Whatever is accepted survives being sent on: nothing of it is lost on the way to a peer of this version.
func FuzzPolicy(f *testing.F) {
	for _, text := range []string{rich, `mode: POLICY_MODE_BLOCK_ALL`, `mode: POLICY_MODE_DENYLIST deny_cidrs { cidr: "10.1.2.3/8" }`} {
		b, err := proto.Marshal(bulk(f, text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(netfencev1.BulkUpdate)
		if proto.Unmarshal(b, m) != nil {
			return
		}
		p, _, err := wire.PolicyFrom(m)
		if err != nil {
			if len(wantRefused(t, err).Violations) == 0 {
				t.Fatal("a refusal without a reason")
			}
			return
		}
		sent, err := wire.BulkUpdate(p, wire.Self())
		if err != nil {
			t.Fatalf("accepted and not sendable: %v", err)
		}
		back, warnings, err := wire.PolicyFrom(sent)
		if err != nil || len(warnings) > 0 {
			t.Fatalf("sent and not accepted: %v %q", err, warnings)
		}
		if !reflect.DeepEqual(p, back) {
			t.Fatalf("got %+v, want %+v", back, p)
		}
	})
}
