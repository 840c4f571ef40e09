// SPDX-License-Identifier: Apache-2.0

package reconciler

import (
	"fmt"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

// crashed is what the daemon dies of in these tests.
type crashed struct{ step string }

// life is a daemon up to the step at which it dies.
type life struct {
	store *state.Store
	r     *Reconciler
	k     *fakeKernel
	steps int
	dies  int // at this step, from 1; 0: never
	last  string
}

// step stands at every point where the file, the kernel or what is known of
// either changes.
func (l *life) step(name string) {
	l.steps++
	l.last = fmt.Sprintf("%d: %s", l.steps, name)
	if l.steps == l.dies {
		panic(crashed{name})
	}
}

// settle does what Run does until nothing is dirty, one after the other. What
// fails is not tried again: in these tests only the end of the daemon fails.
func (l *life) settle(t *testing.T) {
	for ids := l.store.TakeDirty(); len(ids) > 0; ids = l.store.TakeDirty() {
		l.step("dirty taken")
		for _, id := range ids {
			if err := l.r.reconcile(id); err != nil {
				t.Errorf("reconcile %s: %v", id, err)
			}
			l.step("observed")
		}
	}
}

// live plays script in a new daemon, and reports whether it died on the way.
func (l *life) live(t *testing.T, path string, script []func(*state.Store)) (died bool) {
	l.store = openStore(t, path)
	l.k.step = l.step
	l.r = newReconciler(l.store, l.k)
	defer func() {
		// Of the daemon the file is left, and the kernel.
		if err := l.store.Close(); err != nil {
			t.Error(err)
		}
		if p := recover(); p != nil {
			if _, died = p.(crashed); !died {
				panic(p)
			}
		}
	}()
	l.settle(t)
	for _, do := range script {
		do(l.store)
		l.step("written")
		l.settle(t)
	}
	return false
}

// A daemon that dies at any step is followed by one that ends up with what every
// call that had returned asked for, in the file and in the kernel, and with
// nothing that was half done.
func TestCrash(t *testing.T) {
	held := func(n int) func(*state.Store) {
		return func(s *state.Store) {
			_, _, err := s.Create(state.Attachment{ID: id(n), Target: cgroup(n), Pending: true, Held: true})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	applied := func(n int, p *policy.Policy) func(*state.Store) {
		return func(s *state.Store) { apply(t, s, n, p) }
	}
	released := func(n int) func(*state.Store) {
		return func(s *state.Store) {
			if err := s.Release(id(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	removed := func(n int) func(*state.Store) { return func(s *state.Store) { remove(t, s, n) } }
	first, second := allow("10.0.0.0/8"), allow("192.0.2.0/24")
	type expected map[string]*policy.Policy // by id; what is not there is gone
	script := []struct {
		do   func(*state.Store)
		want expected // should the daemon die when do has returned
	}{
		{held(1), expected{}}, // nobody has its id: rolled back
		{applied(1, first), expected{}},
		{released(1), expected{id(1): first}},
		{held(2), expected{id(1): first}},
		{applied(1, second), expected{id(1): second}},
		{released(2), expected{id(1): second, id(2): policy.BlockAll()}},
		{applied(2, first), expected{id(1): second, id(2): first}},
		{removed(1), expected{id(2): first}},
		{applied(2, second), expected{id(2): second}},
		{removed(2), expected{}},
	}

	for dies := 1; ; dies++ {
		path := filepath.Join(t.TempDir(), "state.db")
		k := newFakeKernel(t)
		l := &life{k: k, dies: dies}
		want := expected{}
		var play []func(*state.Store)
		for _, s := range script {
			play = append(play, func(store *state.Store) {
				s.do(store)
				want = s.want
			})
		}
		if !l.live(t, path, play) {
			if dies < 40 {
				t.Errorf("only %d steps", dies)
			}
			return // every step has had its turn
		}
		where := "died at " + l.last
		atDeath := k.snapshot()

		// Opening the file is no reason to touch the kernel.
		k.step = nil
		next := openStore(t, path)
		if got := k.snapshot(); !reflect.DeepEqual(got, atDeath) {
			t.Errorf("%s: opening changed the kernel: %+v, was %+v", where, got, atDeath)
		}
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
		second := &life{k: k}
		if second.live(t, path, nil) {
			t.Fatalf("%s: died again", where)
		}

		// Whole state: the file, as yet another daemon reads it, and the kernel.
		third := openStore(t, path)
		got := expected{}
		for _, a := range third.List() {
			got[a.ID] = a.Policy
			if a.Removing != state.ReasonNone || a.Held {
				t.Errorf("%s: left half done: %+v", where, a)
			}
		}
		settled := expected{}
		for id, p := range want {
			settled[id] = p.Settle(nil, stoppedClock{}.Boot(), stoppedClock{}.Wall())
		}
		if !reflect.DeepEqual(got, settled) {
			t.Errorf("%s: desired %+v, want %+v", where, got, settled)
		}
		if got, want := k.snapshot(), desired(t, third); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the kernel holds %+v, want %+v", where, got, want)
		}
		if err := third.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A daemon that dies after the kernel refused, and before that was noted, is
// followed by one that goes back to what was in force.
func TestCrashBeforeRefusalIsNoted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	k := newFakeKernel(t)
	good := allow("10.0.0.0/8")
	l := &life{k: k}
	l.live(t, path, []func(*state.Store){
		func(s *state.Store) { create(t, s, 1) },
		func(s *state.Store) { apply(t, s, 1, good) },
	})
	before := k.snapshot()

	refused, err := allow("192.0.2.0/24").Settle(nil, stoppedClock{}.Boot(), stoppedClock{}.Wall()).Compile()
	if err != nil {
		t.Fatal(err)
	}
	full := &fullKernel{fakeKernel: k, refuses: refused}
	l = &life{k: k}
	l.store = openStore(t, path)
	apply(t, l.store, 1, allow("192.0.2.0/24"))
	if err := full.Replace(id(1), refused); err == nil {
		t.Fatal("not refused")
	}
	if err := l.store.Close(); err != nil { // dies here
		t.Fatal(err)
	}

	l.store = openStore(t, path)
	l.r = newReconciler(l.store, full)
	l.settle(t)
	a, st, err := l.store.Get(id(1))
	if err != nil || len(a.Policy.Allow) != 1 || a.Policy.Allow[0].Prefix != good.Allow[0].Prefix || st.Applied != a.Revision {
		t.Errorf("desired %+v, %+v, %v", a, st, err)
	}
	if got := k.snapshot(); !reflect.DeepEqual(got, before) {
		t.Errorf("in force %+v, want %+v", got, before)
	}
}

// fullKernel has no room for one policy.
type fullKernel struct {
	*fakeKernel
	refuses *policy.Compiled
}

func (k *fullKernel) Replace(id string, c *policy.Compiled) error {
	if reflect.DeepEqual(c, k.refuses) {
		return fmt.Errorf("replace %s: %w", id, errFull)
	}
	return k.fakeKernel.Replace(id, c)
}
