// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/testenv"
)

// A file descriptor is closed once, whenever garbage is collected. With the library's Close alone about two of a
// million are closed twice under the race detector.
func TestFileDescriptorsAreClosedOnce(t *testing.T) {
	testenv.Require(t, testenv.Root)
	closes := 1_000_000
	if os.Getenv("NETFENCE_SOAK") != "" {
		closes *= 20
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "nf_closed", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	var closing, collecting sync.WaitGroup
	var stop atomic.Bool
	collecting.Go(func() {
		for !stop.Load() {
			runtime.GC()
		}
	})
	const each = 8
	for range each {
		closing.Go(func() {
			for range closes / each {
				c, err := m.Clone()
				if err == nil {
					err = closeBPF(c)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	closing.Wait()
	stop.Store(true)
	collecting.Wait()
	if err := closeBPF(m); err != nil {
		t.Error(err)
	}
}
