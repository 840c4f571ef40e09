// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// Whoever asks while a walk goes on gets the next one, all together.
func TestWalksAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w walks
		var ran []uint32
		hold := make(chan error)
		run := func(index uint32) error {
			ran = append(ran, index)
			return <-hold
		}
		var asking sync.WaitGroup
		ask := func(index uint32, want error) {
			asking.Go(func() {
				if err := w.join(index, run); !errors.Is(err, want) {
					t.Errorf("walk of %d: %v, want %v", index, err, want)
				}
			})
			synctest.Wait()
		}
		failed := errors.New("failed")
		ask(1, nil)
		ask(1, failed) // not the one that has begun
		ask(2, failed)
		ask(2, failed)
		hold <- nil
		synctest.Wait()
		ask(3, nil)
		ask(3, nil)
		hold <- failed
		hold <- nil
		asking.Wait()
		if want := []uint32{1, 0, 3}; !slices.Equal(ran, want) {
			t.Errorf("walks of %v, want %v", ran, want)
		}
		if w.next != nil {
			t.Error("a walk is left")
		}
	})
}
