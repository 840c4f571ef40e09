// SPDX-License-Identifier: Apache-2.0

package reconciler

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// When the state is lost, what is filtered stays so, and is reported.
func TestOrphans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, k := newStore(t), newFakeKernel(t)
		create(t, s, 1)
		for _, n := range []int{1, 7, 8, 9} {
			k.held[id(n)] = held{target: cgroup(n)}
		}
		r := newReconciler(s, k)
		start(t, r)
		pass(time.Hour)

		check := func(want ...string) {
			t.Helper()
			if got, err := r.Orphans(); err != nil || !slices.Equal(got, want) {
				t.Errorf("orphans %v, %v, want %v", got, err, want)
			}
		}
		check(id(7), id(8), id(9))
		if got := k.snapshot(); len(got) != 4 {
			t.Errorf("the kernel holds %+v", got)
		}
		delete(k.held, id(8)) // its target went
		check(id(7), id(9))
		k.fail = func(call, of string) error {
			if call == "detach" && of == id(9) {
				return errBusy
			}
			return nil
		}
		if err := r.DetachOrphans(); !errors.Is(err, errBusy) {
			t.Errorf("detach orphans: %v", err)
		}
		check(id(9))
		k.fail = nil
		if err := r.DetachOrphans(); err != nil {
			t.Error(err)
		}
		check()
		compare(t, s, k)
	})
}
