// SPDX-License-Identifier: Apache-2.0

package reconciler

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errBusy     = errors.New("busy")
	errFull     = errors.New("map full")
	errVanished = errors.New("target has vanished")
)

// fakeKernel holds what it is told to, in one step each, and survives the daemon.
//
// It is trusted for one thing only: that the reconciler makes the right calls in
// the right order, whatever happens between them. That the kernel does what the
// calls say, atomically, and goes on when the daemon is killed, is shown on a
// real one, in test/e2e and in the tests of package datapath.
type fakeKernel struct {
	t testing.TB
	// step is called before and after every change, if it is not nil; it may
	// panic: then the daemon died there.
	step func(name string)
	// fail is asked before every call, if it is not nil.
	fail func(call, id string) error

	mu    sync.Mutex
	held  map[string]held
	calls []string
	busy  map[string]bool // calls under way
	most  int             // calls under way at the same time, at most
}

type held struct {
	target   target.Target
	compiled *policy.Compiled // nil: closed
}

func newFakeKernel(t testing.TB) *fakeKernel {
	return &fakeKernel{t: t, held: map[string]held{}, busy: map[string]bool{}}
}

func (k *fakeKernel) call(name, id string, change func()) error {
	k.mu.Lock()
	k.calls = append(k.calls, name+" "+id)
	if k.busy[id] {
		k.t.Errorf("%s of %s while another call for it is under way", name, id)
	}
	k.busy[id] = true
	k.most = max(k.most, len(k.busy))
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.busy, id)
	}()

	if k.fail != nil {
		if err := k.fail(name, id); err != nil {
			return fmt.Errorf("%s %s: %w", name, id, err)
		}
	}
	k.at("before " + name)
	k.mu.Lock()
	change()
	k.mu.Unlock()
	k.at("after " + name)
	return nil
}

func (k *fakeKernel) at(step string) {
	if k.step != nil {
		k.step(step)
	}
}

func (k *fakeKernel) Attach(id string, t target.Target) error {
	return k.call("attach", id, func() {
		if _, ok := k.held[id]; !ok {
			k.held[id] = held{target: t}
		}
	})
}

func (k *fakeKernel) Replace(id string, c *policy.Compiled) error {
	return k.call("replace", id, func() {
		h, ok := k.held[id]
		if !ok {
			k.t.Errorf("replace of %s, which is not attached", id)
		}
		k.held[id] = held{h.target, c}
	})
}

func (k *fakeKernel) Detach(id string) error {
	return k.call("detach", id, func() { delete(k.held, id) })
}

func (k *fakeKernel) IDs() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		if err := k.fail("ids", ""); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(k.held)), nil
}

func (k *fakeKernel) snapshot() map[string]held {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.held)
}

func (k *fakeKernel) count(call string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, c := range k.calls {
		if c == call {
			n++
		}
	}
	return n
}

// stoppedClock makes deadlines that can be compared.
type stoppedClock struct{}

func (stoppedClock) Boot() time.Duration { return time.Hour }
func (stoppedClock) Wall() time.Time     { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

var discard = slog.New(slog.DiscardHandler)

func openStore(t testing.TB, path string) *state.Store {
	t.Helper()
	s, err := state.Open(path, "boot", state.Options{Clock: stoppedClock{}, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newStore(t testing.TB) *state.Store {
	return openStore(t, filepath.Join(t.TempDir(), "state.db"))
}

func newReconciler(s *state.Store, k Kernel) *Reconciler {
	return New(s, k, Options{
		Workers:   4,
		Backoff:   Backoff{Min: time.Second, Max: time.Minute},
		Permanent: func(err error) bool { return errors.Is(err, errFull) },
		Vanished:  func(err error) bool { return errors.Is(err, errVanished) },
		Log:       discard,
	})
}

func cgroup(n int) target.Target {
	return target.Target{Type: target.Cgroup, Name: fmt.Sprintf("/sys/fs/cgroup/job-%d", n), CgroupID: uint64(1000 + n), Level: 1}
}

func id(n int) string { return fmt.Sprintf("id-%d", n) }

func create(t testing.TB, s *state.Store, n int) {
	t.Helper()
	_, _, err := s.Create(state.Attachment{ID: id(n), Target: cgroup(n), AttachedAt: time.Unix(int64(n), 0), Pending: true})
	if err != nil {
		t.Fatal(err)
	}
}

func allow(prefix string) *policy.Policy {
	p := &policy.Policy{Mode: policy.ModeAllowlist}
	return p.WithAllow(policy.Rule{Prefix: netip.MustParsePrefix(prefix), TTL: time.Minute})
}

func apply(t testing.TB, s *state.Store, n int, p *policy.Policy) state.Revision {
	t.Helper()
	rev, err := s.Apply(id(n), "test", state.Change{Edit: state.Replace(p), Acknowledge: true})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func remove(t testing.TB, s *state.Store, n int) {
	t.Helper()
	if _, err := s.Remove(id(n), state.ReasonDetached, ""); err != nil {
		t.Fatal(err)
	}
}

// desired is what the kernel is to hold for what the store has.
func desired(t testing.TB, s *state.Store) map[string]held {
	t.Helper()
	want := map[string]held{}
	for _, a := range s.List() {
		compiled, err := a.Policy.Compile()
		if err != nil {
			t.Fatal(err)
		}
		want[a.ID] = held{a.Target, compiled}
	}
	return want
}
