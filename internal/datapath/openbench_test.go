// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// BenchmarkOpen is what it costs to begin where nothing is.
func BenchmarkOpen(b *testing.B) {
	dir, n := filepath.Dir(pinDir(b)), 0
	opening := func(cfg Config) func() time.Duration {
		return func() time.Duration {
			n++
			cfg.Dir = filepath.Join(dir, strconv.Itoa(n))
			start := time.Now()
			d, err := openRenewed(cfg)
			took := time.Since(start)
			if err != nil {
				b.Fatal(err)
			}
			if err := d.Close(); err != nil {
				b.Fatal(err)
			}
			if err := RemoveAll(cfg.Dir); err != nil {
				b.Fatal(err)
			}
			return took
		}
	}
	for b.Loop() {
		table(b, "open", []benchCase{
			{"everything", opening(Config{})},
			{"one cgroup", opening(Config{Only: Cgroups, MaxAttachments: 1})},
		})
	}
}
