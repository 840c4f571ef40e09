// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/netfence/netfence/policy"
)

// Ten thousand attachments of one policy file are one policy in memory, before and
// after a start.
func TestEqualPoliciesAreShared(t *testing.T) {
	path := t.TempDir() + "/state.db"
	s := open(t, path, Options{})
	for n := range 3 {
		mustCreate(t, s, attachment(n))
		mustApply(t, s, attachment(n).ID, numbered(n/2))
	}
	check := func(when string, s *Store) {
		t.Helper()
		var all []Desired
		for n := range 3 {
			d, err := s.Desired(attachment(n).ID)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, d)
		}
		if all[0].Compiled != all[1].Compiled || all[0].version.Policy != all[1].version.Policy {
			t.Errorf("%s: equal policies are two", when)
		}
		if all[0].Compiled == all[2].Compiled || all[0].version.Policy == all[2].version.Policy {
			t.Errorf("%s: different policies are one", when)
		}
		list := s.List()
		if list[0].Policy != list[1].Policy || list[0].Policy == list[2].Policy {
			t.Errorf("%s: listed otherwise", when)
		}
	}
	check("attached", s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check("started again", open(t, path, Options{}))
}

// Few policies are kept that nobody has any more, and no large one, nor what could
// not be compiled.
func TestSharedPoliciesEnd(t *testing.T) {
	var s shared
	compiled := 0
	compile := func(p *policy.Policy) (*policy.Compiled, error) {
		compiled++
		return p.Compile()
	}
	get := func(p *policy.Policy, pending bool, want int) {
		t.Helper()
		if _, _, err := s.get(p, pending, compile); err != nil || compiled != want {
			t.Errorf("%d compiled, %v; want %d", compiled, err, want)
		}
	}
	p := numbered(1)
	get(p, false, 1)
	get(numbered(1), false, 1)
	get(numbered(1), true, 2) // without the guard it is another
	get(numbered(2), false, 3)
	get(p, false, 3)
	runtime.KeepAlive(p)
	large := func() *policy.Policy {
		p := &policy.Policy{Mode: policy.ModeAllowlist}
		for n := range keptRules + 1 {
			p.Allow = append(p.Allow, policy.Rule{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n)}), 24)})
		}
		return p
	}
	func() {
		p := large()
		get(p, false, 4)
		if q, _, err := s.get(large(), false, compile); q != p || err != nil {
			t.Errorf("large, while somebody has it: %v", err)
		}
		runtime.KeepAlive(p)
	}()
	runtime.GC()
	if slices.ContainsFunc(s.recent, func(e sharedPolicy) bool { return e.kept == nil && e.policy.Value() != nil }) {
		t.Error("a large policy is kept that nobody has")
	}
	compiled = 4
	for n := range 2 * maxShared {
		get(numbered(n+3), false, 5+n)
	}
	if len(s.recent) > maxShared {
		t.Errorf("%d are remembered", len(s.recent))
	}
	refused := errors.New("refused")
	if _, _, err := s.get(numbered(100), false, func(*policy.Policy) (*policy.Compiled, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("%v, want %v", err, refused)
	}
}
