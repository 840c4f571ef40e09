// SPDX-License-Identifier: Apache-2.0

package run_test

import (
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// BenchmarkTrue is what a fence adds to a command: `run -- true` and `true` in turn.
//
//	go test -run '^$' -bench True -benchtime 50x ./internal/run
func BenchmarkTrue(b *testing.B) {
	testenv.Require(b, testenv.Root, testenv.Cgroup2)
	d := harness.New(b, nil)
	b.Run("own filter", func(b *testing.B) { pairs(b, d) })
	d.Start(b)
	b.Run("daemon's filter", func(b *testing.B) { pairs(b, d) })
}

func pairs(b *testing.B, d *harness.Daemon) {
	var fenced, plain []time.Duration
	for b.Loop() {
		fenced = append(fenced, took(b, d.Command("run", "--config", d.Config, "--", "true")))
		plain = append(plain, took(b, exec.Command("true")))
	}
	b.ReportMetric(0, "ns/op") // of both together: nothing that anybody wants to know
	b.ReportMetric(median(fenced), "fenced-ms")
	b.ReportMetric(median(plain), "plain-ms")
}

func took(b *testing.B, cmd *exec.Cmd) time.Duration {
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return time.Since(start)
}

func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2]) / float64(time.Millisecond)
}
