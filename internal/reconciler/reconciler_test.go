// SPDX-License-Identifier: Apache-2.0

package reconciler

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netfence/netfence/internal/state"
)

// start runs r until the returned function is called.
func start(t *testing.T, r *Reconciler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// pass lets the bubble's clock run on.
func pass(d time.Duration) { <-time.After(d) }

// world is a store and a kernel with a reconciler between them that runs.
func world(t *testing.T, prepare func(*fakeKernel)) (*state.Store, *fakeKernel) {
	s, k := newStore(t), newFakeKernel(t)
	if prepare != nil {
		prepare(k)
	}
	start(t, newReconciler(s, k))
	synctest.Wait()
	return s, k
}

func compare(t *testing.T, s *state.Store, k *fakeKernel) {
	t.Helper()
	if got, want := k.snapshot(), desired(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("the kernel holds\n%+v, want\n%+v", got, want)
	}
}

func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := world(t, nil)
		create(t, s, 1)
		if err := s.Wait(t.Context(), id(1), 1); err != nil {
			t.Fatal(err)
		}
		compare(t, s, k)
		rev := apply(t, s, 1, allow("10.0.0.0/8"))
		if err := s.Wait(t.Context(), id(1), rev); err != nil {
			t.Fatal(err)
		}
		compare(t, s, k)
		remove(t, s, 1)
		if err := s.Wait(t.Context(), id(1), state.Removal); err != nil {
			t.Fatal(err)
		}
		if got := k.snapshot(); len(got) != 0 || s.Len() != 0 || len(s.Gone()) != 1 {
			t.Errorf("left: %v, %d attachments, gone %v", got, s.Len(), s.Gone())
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := world(t, func(k *fakeKernel) {
			k.step = func(string) { pass(8 * time.Millisecond) } // an RCU grace period
		})
		const n = 40
		for i := range n {
			create(t, s, i)
		}
		begin := time.Now()
		for i := range n {
			for _, p := range []string{"10.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24"} {
				apply(t, s, i, allow(p))
			}
			if i%4 == 0 {
				remove(t, s, i)
			}
		}
		for _, a := range s.List() {
			if err := s.Wait(t.Context(), a.ID, a.Revision); err != nil && !errors.Is(err, state.ErrNotFound) {
				t.Error(err)
			}
		}
		synctest.Wait()
		compare(t, s, k)
		if s.Len() != n-n/4 {
			t.Errorf("%d attachments", s.Len())
		}
		if k.most != 4 {
			t.Errorf("%d calls at a time, want one per worker", k.most)
		}
		if took := time.Since(begin); took > n*2*4*8*time.Millisecond/4 {
			t.Errorf("took %v: the workers did not share", took)
		}
	})
}

// Many changes while the kernel is slow are one change for it.
func TestLatestStateOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		s, k := world(t, func(k *fakeKernel) {
			k.fail = func(call, _ string) error {
				if call == "attach" {
					<-gate
				}
				return nil
			}
		})
		create(t, s, 1)
		synctest.Wait()
		for range 50 {
			apply(t, s, 1, allow("10.0.0.0/8"))
			apply(t, s, 1, allow("192.0.2.0/24"))
		}
		synctest.Wait()
		close(gate)
		synctest.Wait()
		compare(t, s, k)
		if n := k.count("replace " + id(1)); n != 2 {
			t.Errorf("%d replaces, want the one under way and the latest", n)
		}
	})
}

func TestRetry(t *testing.T) {
	for _, call := range []string{"attach", "replace", "detach"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries []time.Time
				var works atomic.Bool
				s, k := world(t, func(k *fakeKernel) {
					k.fail = func(name, _ string) error {
						if name != call {
							return nil
						}
						tries = append(tries, time.Now())
						if works.Load() {
							return nil
						}
						return errBusy
					}
				})
				create(t, s, 1)
				synctest.Wait()
				rev := state.Revision(1)
				if call == "detach" {
					remove(t, s, 1)
					rev = state.Removal
				}
				pass(10 * time.Minute)
				if _, st, err := s.Get(id(1)); err != nil || !errors.Is(st.LastError, errBusy) {
					t.Errorf("status while it fails: %+v, %v", st, err)
				}
				works.Store(true)
				if err := s.Wait(t.Context(), id(1), rev); err != nil {
					t.Fatal(err)
				}
				if call != "detach" {
					compare(t, s, k)
					if _, st, err := s.Get(id(1)); err != nil || st.LastError != nil {
						t.Errorf("status after: %+v, %v", st, err)
					}
				} else if len(k.snapshot()) != 0 {
					t.Error("still in the kernel")
				}
				for i := 1; i < len(tries); i++ {
					pause, most := tries[i].Sub(tries[i-1]), min(time.Minute, time.Second<<(i-1))
					if pause < most/2 || pause > most {
						t.Errorf("pause %d is %v, want between %v and %v", i, pause, most/2, most)
					}
				}
				if n := len(tries); n < 15 || n > 40 {
					t.Errorf("%d tries in 10 minutes", n)
				}
			})
		})
	}
}

// A change is tried at once, whatever failed before it.
func TestChangeEndsPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var works atomic.Bool
		s, k := world(t, func(k *fakeKernel) {
			k.fail = func(call, _ string) error {
				if works.Load() || call == "ids" {
					return nil
				}
				return errBusy
			}
		})
		create(t, s, 1)
		pass(5 * time.Minute)
		works.Store(true)
		begin := time.Now()
		rev := apply(t, s, 1, allow("10.0.0.0/8"))
		if err := s.Wait(t.Context(), id(1), rev); err != nil {
			t.Fatal(err)
		}
		if time.Since(begin) != 0 {
			t.Errorf("waited %v", time.Since(begin))
		}
		attaches := k.count("attach " + id(1))
		pass(time.Hour) // no pause is left that would wake it
		if k.count("attach "+id(1)) != attaches {
			t.Error("handled again without reason")
		}
	})
}

func TestRefusedPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refuse atomic.Bool
		s, k := world(t, func(k *fakeKernel) {
			k.fail = func(call, _ string) error {
				if call == "replace" && refuse.Load() {
					return errFull
				}
				return nil
			}
		})
		create(t, s, 1)
		good := apply(t, s, 1, allow("10.0.0.0/8"))
		if err := s.Wait(t.Context(), id(1), good); err != nil {
			t.Fatal(err)
		}
		before := k.snapshot()
		refuse.Store(true)
		var refused *state.RefusedError
		err := s.Wait(t.Context(), id(1), apply(t, s, 1, allow("192.0.2.0/24")))
		if !errors.As(err, &refused) || !errors.Is(err, errFull) {
			t.Errorf("wait: %v", err)
		}
		if a, _, _ := s.Get(id(1)); a.Revision != good {
			t.Errorf("desired revision %d, want %d", a.Revision, good)
		}
		if got := k.snapshot(); !reflect.DeepEqual(got, before) {
			t.Errorf("in force: %+v, want %+v", got, before)
		}
		n := len(k.calls)
		pass(time.Hour)
		if len(k.calls) != n {
			t.Errorf("it was tried again: %v", k.calls[n:])
		}
	})
}

// An attach that the kernel has no room for is refused at once, and taken back by
// whoever asked for it.
func TestRefusedAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := world(t, func(k *fakeKernel) {
			k.fail = func(call, _ string) error {
				if call == "attach" {
					return errFull
				}
				return nil
			}
		})
		create(t, s, 1)
		var refused *state.RefusedError
		if err := s.Wait(t.Context(), id(1), 1); !errors.As(err, &refused) {
			t.Errorf("wait: %v", err)
		}
		remove(t, s, 1)
		if err := s.Wait(t.Context(), id(1), state.Removal); err != nil {
			t.Error(err)
		}
		pass(time.Hour)
		compare(t, s, k)
	})
}

func TestVanished(t *testing.T) {
	for _, call := range []string{"attach", "replace"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, k := world(t, func(k *fakeKernel) {
					k.fail = func(name, _ string) error {
						if name == call {
							return errVanished
						}
						return nil
					}
				})
				create(t, s, 1)
				if err := s.Wait(t.Context(), id(1), 1); !errors.Is(err, state.ErrNotFound) {
					t.Errorf("wait: %v", err)
				}
				if err := s.Wait(t.Context(), id(1), state.Removal); err != nil {
					t.Error(err)
				}
				gone := s.Gone()
				if len(gone) != 1 || gone[0].Reason != state.ReasonRemoved || gone[0].Text == "" {
					t.Errorf("gone: %+v", gone)
				}
				if got := k.snapshot(); len(got) != 0 {
					t.Errorf("the kernel holds %+v", got)
				}
			})
		})
	}
}

// Stopping finishes the step that was begun, and ends no filter.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		s, k := newStore(t), newFakeKernel(t)
		k.fail = func(call, of string) error {
			if call == "replace" && of == id(1) {
				<-gate
			}
			if of == id(2) {
				return errBusy // in a pause when Run ends
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		returned := make(chan error, 1)
		go func() { returned <- newReconciler(s, k).Run(ctx) }()
		create(t, s, 1)
		create(t, s, 2)
		synctest.Wait()
		cancel()
		synctest.Wait()
		select {
		case err := <-returned:
			t.Fatalf("returned while a call was under way: %v", err)
		default:
		}
		create(t, s, 3) // too late for this daemon
		close(gate)
		if err := <-returned; err != nil {
			t.Error(err)
		}
		if _, st, err := s.Get(id(1)); err != nil || st.Applied != 1 {
			t.Errorf("the step under way: %+v, %v", st, err)
		}
		n := len(k.calls)
		pass(time.Hour)
		if len(k.calls) != n || len(k.snapshot()) != 1 {
			t.Errorf("after the end: %v, %+v", k.calls[n:], k.snapshot())
		}
	})
}

func TestRunNeedsToSeeTheKernel(t *testing.T) {
	s, k := newStore(t), newFakeKernel(t)
	k.fail = func(string, string) error { return errBusy }
	if err := newReconciler(s, k).Run(t.Context()); !errors.Is(err, errBusy) {
		t.Errorf("Run: %v", err)
	}
}
