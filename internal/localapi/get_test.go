// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// TestGetGuard: what is shown of the guard is in force, which it is not before the first policy.
func TestGetGuard(t *testing.T) {
	guard := &policy.Guard{Deny: []policy.Rule{{Prefix: netip.MustParsePrefix("169.254.0.0/16")}}}
	e := newEnv(t, state.Limits{}, func(o *Options) { o.Guard = guard })
	_, _, err := e.store.Create(state.Attachment{
		ID: "id-1", Target: target.Target{Type: target.Cgroup, Name: "/cg/a", CgroupID: 1}, Pending: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	get := func() *netfencev1.GetResponse {
		t.Helper()
		got, err := e.client.Get(t.Context(), &netfencev1.GetRequest{Id: "id-1"})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if err := e.store.Wait(t.Context(), "id-1", 1); err != nil {
		t.Fatal(err)
	}
	if got := get(); got.GetGuard() != nil {
		t.Errorf("while pending: %v", got)
	}
	revision, err := e.store.Apply("id-1", "test", state.Change{Edit: state.Replace(policy.BlockAll()), Acknowledge: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.store.Wait(t.Context(), "id-1", revision); err != nil {
		t.Fatal(err)
	}
	if got := get(); !proto.Equal(got.GetGuard(), wire.Guard(guard)) {
		t.Errorf("in force: %v", got)
	}
}
