// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/netfence/netfence/policy"
)

// TestGuard: what goes to the kernel has the guard above it, over a restart
// too, and from the first policy on.
func TestGuard(t *testing.T) {
	metadata := policy.Flow{Addr: netip.MustParseAddr("169.254.169.254"), Protocol: policy.TCP, Port: 80}
	resolver := policy.Flow{Addr: netip.MustParseAddr("10.0.0.53"), Protocol: policy.UDP, Port: 53}
	guard := &policy.Guard{
		Allow: []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.53/32")}},
		Deny:  []policy.Rule{{Prefix: netip.MustParsePrefix("169.254.0.0/16")}},
	}
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Guard: guard})
	passes := func(want bool, flow policy.Flow) {
		t.Helper()
		d := mustDesired(t, s, "id-1")
		if action, _, _ := d.Compiled.Decide(flow, 0); (action == policy.Allow) != want {
			t.Errorf("%v: %v in mode %v", flow, action, d.Compiled.Mode)
		}
	}
	a := attachment(1)
	a.Pending = true
	mustCreate(t, s, a)
	passes(false, resolver)
	for _, p := range []*policy.Policy{policy.BlockAll(), allowlist("169.254.169.254/32"), {Mode: policy.ModeDisabled}} {
		if _, err := s.Apply("id-1", "test", Change{Edit: Replace(p), Acknowledge: true}); err != nil {
			t.Fatal(err)
		}
		for range 2 { // in memory, and from the file
			passes(true, resolver)
			passes(false, metadata)
			s = reopen(t, s)
		}
	}
	// A daemon without it takes it away.
	s.guard = nil
	s = reopen(t, s)
	passes(true, metadata)
}

// TestGuardLeavesNoRoom: a policy that is too much together with the guard is
// refused, and one that is already there is told of when the guard grows.
func TestGuardLeavesNoRoom(t *testing.T) {
	ports := func(n int) (list []policy.Ports) {
		for i := range uint16(n) {
			list = append(list, policy.Ports{First: 2*i + 1, Last: 2*i + 1})
		}
		return list
	}
	all := netip.MustParsePrefix("0.0.0.0/0")
	p := &policy.Policy{Mode: policy.ModeDenylist, Deny: []policy.Rule{{Prefix: all, Ports: ports(64)}, {Prefix: all, Ports: ports(64)}}}
	guard := &policy.Guard{Deny: []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Ports: ports(1)}}}
	var invalid *policy.InvalidError

	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Guard: guard})
	mustCreate(t, s, attachment(1))
	if err := s.Check(p); !errors.As(err, &invalid) || invalid.Field != "deny[0]" {
		t.Errorf("Check: %v", err)
	}
	if _, err := s.Apply("id-1", "test", Change{Edit: Replace(p), Acknowledge: true}); !errors.As(err, &invalid) {
		t.Errorf("Apply: %v", err)
	}
	s.guard = nil
	mustApply(t, s, "id-1", p)
	s.guard = guard
	s = reopen(t, s)
	if _, err := s.Desired("id-1"); !errors.As(err, &invalid) {
		t.Errorf("Desired: %v", err)
	}
}
