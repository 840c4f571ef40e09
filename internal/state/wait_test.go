// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"testing/synctest"
)

var errFull = errors.New("map full")

// waiter waits for a revision in the background.
type waiter struct {
	done bool
	err  error
}

func startWait(ctx context.Context, s *Store, id string, rev Revision) *waiter {
	w := &waiter{}
	go func() {
		w.err = s.Wait(ctx, id, rev)
		w.done = true
	}()
	synctest.Wait()
	return w
}

func TestWait(t *testing.T) {
	for _, tc := range []struct {
		name string
		rev  Revision
		do   func(t *testing.T, s *Store)
		want error // nil; ErrNotFound; errFull: a RefusedError
	}{
		{"in force", 2, func(t *testing.T, s *Store) { follow(t, s) }, nil},
		{"later in force", 2, func(t *testing.T, s *Store) {
			mustApply(t, s, "id-1", allowlist("192.0.2.0/24"))
			follow(t, s)
		}, nil},
		{"refused", 2, refuse, errFull},
		{"refused with what followed", 2, func(t *testing.T, s *Store) {
			mustApply(t, s, "id-1", allowlist("192.0.2.0/24"))
			refuse(t, s)
		}, errFull},
		{"removed instead", 2, remove, ErrNotFound},
		{"removal", Removal, func(t *testing.T, s *Store) { remove(t, s); follow(t, s) }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(t)
				mustCreate(t, s, attachment(1))
				follow(t, s)
				mustApply(t, s, "id-1", allowlist("10.0.0.0/8"))

				w := startWait(t.Context(), s, "id-1", tc.rev)
				if w.done {
					t.Fatalf("returned before anything happened: %v", w.err)
				}
				tc.do(t, s)
				synctest.Wait()
				late := startWait(t.Context(), s, "id-1", tc.rev)
				for name, w := range map[string]*waiter{"early": w, "late": late} {
					var refused *RefusedError
					switch {
					case !w.done:
						t.Errorf("%s: still waits", name)
					case !errors.Is(w.err, tc.want):
						t.Errorf("%s: %v, want %v", name, w.err, tc.want)
					case errors.Is(tc.want, errFull) && (!errors.As(w.err, &refused) || refused.Revision != tc.rev):
						t.Errorf("%s: %v, want a RefusedError of revision %d", name, w.err, tc.rev)
					}
				}
			})
		})
	}
}

func remove(t *testing.T, s *Store) {
	t.Helper()
	if rev, err := s.Remove("id-1", ReasonDetached, ""); err != nil || rev != Removal {
		t.Fatal(rev, err)
	}
}

func refuse(t *testing.T, s *Store) {
	t.Helper()
	s.TakeDirty()
	back, err := s.Refused(mustDesired(t, s, "id-1"), errFull)
	if err != nil || !back {
		t.Fatalf("back %v, %v", back, err)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t)
		mustCreate(t, s, attachment(1))
		ctx, cancel := context.WithCancel(t.Context())
		w := startWait(ctx, s, "id-1", 1)
		cancel()
		synctest.Wait()
		if !w.done || !errors.Is(w.err, context.Canceled) {
			t.Errorf("done %v, %v", w.done, w.err)
		}
		if err := s.Wait(t.Context(), "nobody", 1); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown id: %v", err)
		}
		if err := s.Wait(t.Context(), "nobody", Removal); err != nil {
			t.Errorf("removal of what is gone: %v", err)
		}
	})
}

// A refusal puts back, durably, all that the change brought.
func TestRefused(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	if _, err := s.Apply("id-1", "test", Change{Edit: Replace(allowlist("10.0.0.0/8")), PolicyRevision: "good", Acknowledge: true}); err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	want, _ := mustGet(t, s, "id-1")
	rev, err := s.Apply("id-1", "test", Change{Edit: Replace(allowlist("192.0.2.0/24")), PolicyRevision: "bad"})
	if err != nil {
		t.Fatal(err)
	}
	refuse(t, s)

	got, st := mustGet(t, s, "id-1")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("desired after the refusal: %+v, want %+v", got, want)
	}
	if st.Applied != want.Revision || !errors.Is(st.LastError, errFull) || !reflect.DeepEqual(st.InForce, want.Policy) {
		t.Errorf("status after the refusal: %+v", st)
	}
	if len(s.TakeDirty()) > 0 {
		t.Error("the kernel holds it already, and it is dirty")
	}
	// The number of what was refused never comes back: somebody may ask for it yet.
	next := mustApply(t, s, "id-1", allowlist("198.51.100.0/24"))
	if next <= rev {
		t.Errorf("revision %d after %d", next, rev)
	}
	follow(t, s)
	if _, st := mustGet(t, s, "id-1"); st.LastError != nil || st.Applied != next {
		t.Errorf("status after a good change: %+v", st)
	}
	if known, err := s.records["id-1"].outcome(rev); !known || !errors.Is(err, errFull) {
		t.Errorf("outcome of the refused revision: %v, %v", known, err)
	}
}

func TestRefusalIsDurable(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	mustApply(t, s, "id-1", allowlist("10.0.0.0/8"))
	follow(t, s)
	want, _ := mustGet(t, s, "id-1")
	mustApply(t, s, "id-1", allowlist("192.0.2.0/24"))
	refuse(t, s)
	if got, _ := mustGet(t, reopen(t, s), "id-1"); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// An observation of what is no longer desired decides nothing: what came after
// decides for both.
func TestRefusedTooLate(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	follow(t, s)
	rev := mustApply(t, s, "id-1", allowlist("10.0.0.0/8"))
	s.TakeDirty()
	d := mustDesired(t, s, "id-1")
	next := mustApply(t, s, "id-1", allowlist("192.0.2.0/24"))
	if back, err := s.Refused(d, errFull); err != nil || !back {
		t.Fatalf("back %v, %v", back, err)
	}
	if a, _ := mustGet(t, s, "id-1"); a.Revision != next {
		t.Errorf("desired revision %d, want %d", a.Revision, next)
	}
	if known, err := s.records["id-1"].outcome(rev); known {
		t.Errorf("outcome is known: %v", err)
	}
	follow(t, s) // it is dirty
	if err := s.Wait(t.Context(), "id-1", rev); err != nil {
		t.Error(err)
	}
}

// With nothing to go back to, the attachment stays as it is desired, for the
// caller to remove or the reconciler to try again.
func TestRefusedFirst(t *testing.T) {
	s := newStore(t)
	a := mustCreate(t, s, attachment(1))
	s.TakeDirty()
	d := mustDesired(t, s, "id-1")
	if back, err := s.Refused(d, errFull); err != nil || back {
		t.Fatalf("back %v, %v", back, err)
	}
	var refused *RefusedError
	if err := s.Wait(t.Context(), "id-1", 1); !errors.As(err, &refused) {
		t.Errorf("wait: %v", err)
	}
	got, st := mustGet(t, s, "id-1")
	if !reflect.DeepEqual(got, a) || st.Applied != 0 || st.InForce != nil || !errors.Is(st.LastError, errFull) {
		t.Errorf("%+v, %+v", got, st)
	}
	if err := s.InForce(d); err != nil { // another try
		t.Fatal(err)
	}
	if _, st := mustGet(t, s, "id-1"); st.Applied != 1 || st.LastError != nil {
		t.Errorf("after another try: %+v", st)
	}
}

// A refusal that nobody remembers is not mistaken for success.
func TestManyRefusals(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	follow(t, s)
	var refused []Revision
	for range maxRefusals + 4 {
		refused = append(refused, mustApply(t, s, "id-1", allowlist("192.0.2.0/24")))
		refuse(t, s)
		mustApply(t, s, "id-1", allowlist("10.0.0.0/8"))
		follow(t, s)
		mustApply(t, s, "id-1", allowlist())
		follow(t, s)
	}
	a, _ := mustGet(t, s, "id-1")
	for _, rev := range refused {
		if err := s.Wait(t.Context(), "id-1", rev); err == nil {
			t.Errorf("refused revision %d of %d counts as in force", rev, a.Revision)
		}
	}
	if err := s.Wait(t.Context(), "id-1", a.Revision); err != nil {
		t.Error(err)
	}
	if n := len(s.records["id-1"].refused); n > maxRefusals {
		t.Errorf("%d refusals are kept", n)
	}
}

func TestFailedIsShownUntilInForce(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	d := mustDesired(t, s, "id-1")
	busy := errors.New("busy")
	s.Failed(d, busy)
	if _, st := mustGet(t, s, "id-1"); !errors.Is(st.LastError, busy) {
		t.Errorf("status %+v", st)
	}
	if err := s.InForce(d); err != nil {
		t.Fatal(err)
	}
	if _, st := mustGet(t, s, "id-1"); st.LastError != nil {
		t.Errorf("status %+v", st)
	}
	s.Failed(Desired{ID: "nobody"}, busy)
}
