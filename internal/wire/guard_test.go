// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"net/netip"
	"reflect"
	"testing"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

func TestGuard(t *testing.T) {
	g := &policy.Guard{
		Allow: []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.53/32"), Ports: []policy.Ports{{First: 53, Last: 53}}}},
		Deny:  []policy.Rule{{Prefix: netip.MustParsePrefix("169.254.0.0/16")}, {Prefix: netip.MustParsePrefix("fd00:ec2::254/128")}},
	}
	if got, err := wire.GuardFrom(wire.Guard(g)); err != nil || !reflect.DeepEqual(got, g) {
		t.Errorf("got %v, %v, want %v", got, err, g)
	}
	for _, none := range []*policy.Guard{nil, {}} {
		if m := wire.Guard(none); m != nil {
			t.Errorf("%v is written as %v", none, m)
		}
	}
	if got, err := wire.GuardFrom(nil); err != nil || !got.Empty() {
		t.Errorf("unset: %v, %v", got, err)
	}
	_, err := wire.GuardFrom(&netfencev1.Guard{DenyCidrs: []*netfencev1.CIDREntry{{Cidr: "10.0.0.0/33"}}})
	if got := wantRefused(t, err).Violations[0].Field; got != "deny_cidrs[0].cidr" {
		t.Errorf("refused for %s", got)
	}
}
