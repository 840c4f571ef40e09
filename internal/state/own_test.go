// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/netfence/netfence/policy"
)

// What was attached with a policy of its own stays so, policy included, over a crash, and leaves nothing for the
// control plane to hear of.
func TestOwnPolicy(t *testing.T) {
	s := newStore(t)
	a := attachment(1)
	a.OwnPolicy, a.Pending, a.Policy = true, false, allowlist("192.0.2.0/24")
	mustCreate(t, s, a)
	follow(t, s)
	s = reopen(t, s)
	got, _ := mustGet(t, s, a.ID)
	if !got.OwnPolicy || got.Pending || len(got.Policy.Allow) != 1 {
		t.Errorf("after a restart: %+v", got)
	}
	if d := mustDesired(t, s, a.ID); d.Compiled.Mode != policy.ModeAllowlist {
		t.Errorf("desired after a restart: %+v", d.Compiled)
	}
	if _, err := s.Remove(a.ID, ReasonRemoved, ""); err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	if s.Len() != 0 || len(s.Gone()) != 0 {
		t.Errorf("after its removal: %d attachments, gone: %+v", s.Len(), s.Gone())
	}
}

func TestCheck(t *testing.T) {
	s := newStore(t)
	if err := s.Check(allowlist("192.0.2.0/24")); err != nil {
		t.Error(err)
	}
	var invalid *policy.InvalidError
	if err := s.Check(&policy.Policy{Allow: []policy.Rule{{Prefix: netip.Prefix{}}}}); !errors.As(err, &invalid) {
		t.Errorf("a rule without a prefix: %v", err)
	}
	if s.Len() != 0 {
		t.Error("something was changed")
	}
}
