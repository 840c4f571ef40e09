// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// BenchmarkFloodedNames is what one attachment waits for its answers, one question at a time, while another asks as fast as
// dnsperf can, far more than its limit of queries in flight; and without that.
func BenchmarkFloodedNames(b *testing.B) {
	testenv.Require(b, testenv.Program("dnsperf"))
	for b.Loop() {
		s := newBenchNames(b)
		loud := s.newJob(b, testenv.NewCgroup(b), "loud")
		s.attach(b, s.job)
		s.attach(b, loud)
		l := load{"one outstanding", "fresh.example", freshNames, "1", true}
		file := l.write(b)
		server := netip.AddrPortFrom(netip.MustParseAddr(public), 53)
		quiet := asked{"alone", s.Host, s.job.cg, server, s.PID()}
		for _, flooded := range []bool{false, true} {
			stop := func() {}
			if flooded {
				stop = s.flood(b, loud, file)
				quiet.name = "beside a flood"
			}
			var p50s, p99s []float64
			lost := 0
			for range benchRounds {
				p := quiet.dnsperf(b, l, file)
				p50s, p99s = append(p50s, float64(p.latency[50])), append(p99s, float64(p.latency[99]))
				lost += p.lost
			}
			stop()
			p50, p99 := median(p50s), median(p99s)
			fmt.Printf("%s: p50 %v, p99 %v, %d lost\n", quiet.name, time.Duration(p50), time.Duration(p99), lost)
			for what, value := range map[string]float64{"p50": p50, "p99": p99, "lost": float64(lost)} {
				b.ReportMetric(value, strings.ReplaceAll(quiet.name, " ", "_")+":"+what)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}

// flood has a place ask without end. The end is stop's.
func (s *named) flood(b *testing.B, p place, file string) (stop func()) {
	b.Helper()
	cmd := exec.Command("dnsperf", "-s", public, "-p", strconv.Itoa(53), "-d", file, "-l", "600", "-c", "16", "-q", "2000", "-t", "1")
	cmd.Dir = filepath.Dir(file)
	testenv.Start(b, cmd, p.ns, p.cg)
	return func() {
		_ = cmd.Process.Kill() // it ends no sooner
		_ = cmd.Wait()
	}
}
