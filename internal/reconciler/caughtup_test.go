// SPDX-License-Identifier: Apache-2.0

package reconciler

import (
	"errors"
	"testing"
	"testing/synctest"
)

func caughtUp(r *Reconciler) bool {
	select {
	case <-r.CaughtUp():
		return true
	default:
		return false
	}
}

func TestCaughtUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := newStore(t), newFakeKernel(t)
		create(t, s, 1)
		create(t, s, 2)
		held := make(chan struct{})
		k.fail = func(call, of string) error {
			switch {
			case call == "attach" && of == id(1):
				return errors.New("not now") // tried is tried
			case call == "attach":
				<-held
			}
			return nil
		}
		r := newReconciler(s, k)
		if caughtUp(r) {
			t.Error("caught up before it began")
		}
		start(t, r)
		synctest.Wait()
		if caughtUp(r) {
			t.Error("caught up while one attachment is under way")
		}
		close(held)
		synctest.Wait()
		if !caughtUp(r) {
			t.Error("not caught up when all were tried")
		}
		create(t, s, 3)
		synctest.Wait() // later ones do not matter, and close nothing twice
	})
}

func TestCaughtUpWithNothingToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReconciler(newStore(t), newFakeKernel(t))
		start(t, r)
		synctest.Wait()
		if !caughtUp(r) {
			t.Error("not caught up with nothing")
		}
	})
}
