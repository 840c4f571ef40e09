// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/netfence/netfence/policy"
)

func TestApply(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	follow(t, s)

	p := allowlist("10.0.0.0/8")
	rev, err := s.Apply("id-1", "test", Change{Edit: Replace(p), PolicyRevision: "r7", Acknowledge: true})
	if err != nil || rev != 2 {
		t.Fatalf("revision %d, %v", rev, err)
	}
	for range 2 { // in memory, and in the file
		a, st := mustGet(t, s, "id-1")
		if a.Revision != 2 || a.PolicyRevision != "r7" || a.Pending || !reflect.DeepEqual(a.Policy, p) {
			t.Errorf("desired: %+v", a)
		}
		if st.Applied == 2 {
			t.Errorf("in force before the kernel said so: %+v", st)
		}
		d := mustDesired(t, s, "id-1")
		want, err := p.Compile()
		if err != nil || d.Revision != 2 || d.Removing || !reflect.DeepEqual(d.Compiled, want) {
			t.Errorf("for the kernel: %+v, %v", d, err)
		}
		s = reopen(t, s)
	}
	follow(t, s)
	if _, st := mustGet(t, s, "id-1"); st.Applied != 2 || !reflect.DeepEqual(st.InForce, p) {
		t.Errorf("status: %+v", st)
	}
}

func TestApplyEdits(t *testing.T) {
	s := newStore(t)
	a := attachment(1)
	a.Policy, a.Pending = allowlist("10.0.0.0/8"), false
	mustCreate(t, s, a)
	_, err := s.Apply(a.ID, "test", Change{Edit: func(cur *policy.Policy) (*policy.Policy, error) {
		return cur.WithMode(policy.ModeDenylist), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := mustGet(t, s, a.ID)
	if want := allowlist("10.0.0.0/8").WithMode(policy.ModeDenylist); !reflect.DeepEqual(got.Policy, want) {
		t.Errorf("policy %+v, want %+v", got.Policy, want)
	}
}

func TestApplyPendingUntilAcknowledged(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	if _, err := s.Apply("id-1", "test", Change{Edit: Replace(allowlist())}); err != nil {
		t.Fatal(err)
	}
	if a, _ := mustGet(t, s, "id-1"); !a.Pending {
		t.Error("an increment ended pending")
	}
	mustApply(t, s, "id-1", allowlist())
	if a, _ := mustGet(t, s, "id-1"); a.Pending {
		t.Error("the acknowledgement did not end pending")
	}
}

// What is sent again costs neither a write nor the reconciler's time.
func TestApplyNothingNew(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	rev := mustApply(t, s, "id-1", allowlist("10.0.0.0/8"))
	follow(t, s)
	if _, err := s.Apply("id-1", "test", Change{Edit: Replace(&policy.Policy{Mode: 9})}); err == nil {
		t.Fatal("unknown mode accepted")
	}
	if again := mustApply(t, s, "id-1", allowlist("10.0.0.0/8")); again != rev {
		t.Errorf("revision %d for what revision %d brought", again, rev)
	}
	if ids := s.TakeDirty(); len(ids) > 0 {
		t.Errorf("dirty: %v", ids)
	}
	if _, st := mustGet(t, s, "id-1"); st.LastError != nil {
		t.Errorf("still refused: %v", st.LastError)
	}
	next, err := s.Apply("id-1", "test", Change{Edit: Replace(allowlist("10.0.0.0/8")), PolicyRevision: "named now"})
	if err != nil || next != rev+1 {
		t.Errorf("another name for it: revision %d, %v", next, err)
	}
}

// manyClauses is valid, but has more for one prefix than the kernel's table holds.
func manyClauses() *policy.Policy {
	p := allowlist("10.0.0.0/24")
	for i := range policy.MaxChain + 1 {
		p.Allow[0].Ports = append(p.Allow[0].Ports, policy.Ports{First: uint16(2*i + 1), Last: uint16(2*i + 1), Protocol: policy.TCP})
	}
	return p
}

func TestApplyErrorChangesNothing(t *testing.T) {
	edited := errors.New("bad CIDR in the middle")
	rules := make([]string, 0, policy.MaxChain+2)
	for i := range cap(rules) {
		rules = append(rules, fmt.Sprintf("10.0.%d.0/24", i))
	}
	for _, tc := range []struct {
		name string
		edit func(*policy.Policy) (*policy.Policy, error)
	}{
		{"edit", func(*policy.Policy) (*policy.Policy, error) { return nil, edited }},
		{"validate", Replace(&policy.Policy{Mode: 9})},
		{"too many rules", Replace(allowlist(rules...))},
		{"compile", Replace(manyClauses())},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Limits: Limits{Policy: policy.Limits{Rules: policy.MaxChain}}})
			mustCreate(t, s, attachment(1))
			mustApply(t, s, "id-1", allowlist("10.0.0.0/8"))
			follow(t, s)
			want, _ := mustGet(t, s, "id-1")

			rev, err := s.Apply("id-1", "control plane", Change{Edit: tc.edit, PolicyRevision: "bad", Acknowledge: true})
			if err == nil || rev != 0 {
				t.Fatalf("revision %d, accepted", rev)
			}
			got, st := mustGet(t, s, "id-1")
			if !reflect.DeepEqual(got, want) || len(s.TakeDirty()) > 0 {
				t.Errorf("after the error: %+v", got)
			}
			if !errors.Is(st.LastError, err) || st.Applied != want.Revision {
				t.Errorf("status %+v, want the error %v", st, err)
			}
			if got, _ := mustGet(t, reopen(t, s), "id-1"); !reflect.DeepEqual(got, want) {
				t.Errorf("after the error, in the file: %+v", got)
			}
		})
	}
}

// A full or broken file refuses changes and leaves the rest as it is.
func TestWriteErrorChangesNothing(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	mustApply(t, s, "id-1", allowlist("10.0.0.0/8"))
	want := s.List()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	d := mustDesired(t, s, "id-1")
	s.TakeDirty()
	for name, change := range map[string]func() error{
		"create":   func() error { _, _, err := s.Create(attachment(2)); return err },
		"apply":    func() error { _, err := s.Apply("id-1", "x", Change{Edit: Replace(allowlist())}); return err },
		"remove":   func() error { _, err := s.Remove("id-1", ReasonDetached, ""); return err },
		"release":  func() error { return s.Release("id-1") },
		"removed":  func() error { return s.Removed(d) },
		"in force": func() error { return s.InForce(d) },
	} {
		if change() == nil {
			t.Errorf("%s: accepted without a file", name)
		}
	}
	if got := s.List(); !reflect.DeepEqual(got, want) || len(s.Gone()) > 0 || len(s.TakeDirty()) > 0 {
		t.Errorf("after the errors: %+v, want %+v", got, want)
	}
	if _, st := mustGet(t, s, "id-1"); st.Applied != 0 {
		t.Errorf("status: %+v", st)
	}
}

func TestApplyToNothing(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	if _, err := s.Remove("id-1", ReasonDetached, ""); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"id-1", "id-2"} {
		_, err := s.Apply(id, "test", Change{Edit: Replace(allowlist())})
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("apply to %s: %v", id, err)
		}
		if err := s.Release(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("release %s: %v", id, err)
		}
	}
	if _, err := s.Remove("id-2", ReasonDetached, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove id-2: %v", err)
	}
	if _, err := s.Remove("id-1", ReasonNone, ""); err == nil {
		t.Error("removed without a reason")
	}
}

// A TTL runs from the first application of a rule: neither sending it again, nor
// an increment beside it, nor a restart renews it.
func TestDeadlines(t *testing.T) {
	clock := newClock()
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Clock: clock})
	mustCreate(t, s, attachment(1))
	rule := allowlist("10.0.0.0/8").Allow[0]
	rule.TTL = 10 * time.Minute
	p := allowlist().WithAllow(rule)
	mustApply(t, s, "id-1", p)
	want := clock.boot + rule.TTL

	check := func(when string) {
		t.Helper()
		a, _ := mustGet(t, s, "id-1")
		if got := a.Policy.Allow[0].Deadline; got != want {
			t.Errorf("%s: deadline %v, want %v", when, got, want)
		}
		var compiled time.Duration
		for _, e := range mustDesired(t, s, "id-1").Compiled.Table.Entries {
			compiled = max(compiled, e.Clause.Deadline)
		}
		if compiled != want {
			t.Errorf("%s: compiled deadline %v, want %v", when, compiled, want)
		}
	}
	check("first")
	clock.advance(time.Minute)
	mustApply(t, s, "id-1", p)
	check("sent again")
	_, err := s.Apply("id-1", "test", Change{Edit: func(cur *policy.Policy) (*policy.Policy, error) {
		return cur.WithDeny(policy.Rule{Prefix: allowlist("192.0.2.0/24").Allow[0].Prefix}), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	check("with an increment")
	s = reopen(t, s)
	check("after a restart")
	clock.advance(time.Hour)
	s = reopen(t, s)
	check("expired, after a restart")
}

// Changes of one attachment are made one after the other, none is lost.
func TestApplyConcurrently(t *testing.T) {
	s := newStore(t)
	const attachments, sources, rules = 3, 4, 10
	var wg sync.WaitGroup
	for n := range attachments {
		mustCreate(t, s, attachment(n))
		for source := range sources {
			wg.Go(func() {
				for i := range rules {
					prefix := allowlist(fmt.Sprintf("10.%d.%d.0/24", source, i)).Allow[0]
					_, err := s.Apply(fmt.Sprintf("id-%d", n), "test", Change{Edit: func(cur *policy.Policy) (*policy.Policy, error) {
						return cur.WithAllow(prefix), nil
					}})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	done := make(chan struct{})
	var kernel sync.WaitGroup
	kernel.Go(func() {
		for {
			select {
			case <-s.Dirty():
				follow(t, s)
			case <-done:
				return
			}
		}
	})
	wg.Wait()
	close(done)
	kernel.Wait()
	follow(t, s)
	for n := range attachments {
		a, st := mustGet(t, s, fmt.Sprintf("id-%d", n))
		if len(a.Policy.Allow) != sources*rules || a.Revision != 1+sources*rules || st.Applied != a.Revision {
			t.Errorf("%s: %d rules at revision %d, applied %d", a.ID, len(a.Policy.Allow), a.Revision, st.Applied)
		}
	}
}
