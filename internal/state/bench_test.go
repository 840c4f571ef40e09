// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

// tmpfs is a directory where the daemon would have its file.
func tmpfs(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "netfence-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return dir + "/state.db"
}

// BenchmarkAttach is what an attach costs in this package, five writes included:
// created, in force, policy of ten rules, in force, released.
func BenchmarkAttach(b *testing.B) {
	for _, before := range []int{0, 10_000} {
		b.Run(fmt.Sprintf("after=%d", before), func(b *testing.B) {
			s := open(b, tmpfs(b), Options{Limits: Limits{Attachments: 1 << 30}})
			p := numbered(9)
			attach := func(n int) {
				a := attachment(n)
				a.Held = true
				mustCreate(b, s, a)
				follow(b, s)
				rev := mustApply(b, s, a.ID, p)
				follow(b, s)
				if err := s.Wait(b.Context(), a.ID, rev); err != nil {
					b.Fatal(err)
				}
				if err := s.Release(a.ID); err != nil {
					b.Fatal(err)
				}
			}
			for n := range before {
				attach(n)
			}
			for n := before; b.Loop(); n++ {
				attach(n)
			}
		})
	}
}

// BenchmarkMemory is of 10,000 attachments that are in force, each with a policy
// of its own.
func BenchmarkMemory(b *testing.B) {
	const n = 10_000
	for _, rules := range []int{1, 10} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			for b.Loop() {
				path := tmpfs(b)
				before := heap()
				s := open(b, path, Options{})
				for i := range n {
					a := attachment(i)
					a.Metadata = map[string]string{"tenant": fmt.Sprintf("tenant-%d", i)}
					mustCreate(b, s, a)
					mustApply(b, s, a.ID, numbered(rules-1))
				}
				follow(b, s)
				b.ReportMetric(float64(heap()-before)/n, "heap-bytes/attachment")
				if info, err := os.Stat(path); err == nil {
					b.ReportMetric(float64(info.Size())/n, "file-bytes/attachment")
				}
				begin := time.Now()
				s = reopen(b, s)
				b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/open")
				if s.Len() != n {
					b.Fatal(s.Len())
				}
			}
		})
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
