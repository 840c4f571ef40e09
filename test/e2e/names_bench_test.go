// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// How BenchmarkNames asks.
const (
	benchRounds  = 9
	benchSeconds = "1"
	freshNames   = 10_000 // learned for half a minute at the least
	cachedNames  = 1_000
	benchAddrs   = "77.0.0.0/12"
)

// load is one way to ask.
type load struct {
	name        string // as it is reported
	zone        string
	names       int
	outstanding string
	latencies   bool // of each query
}

var loads = []load{
	{"uncached", "fresh.example", freshNames, "100", false},
	{"cached", "cached.example", cachedNames, "100", false},
	{"uncached, 8 outstanding", "fresh.example", freshNames, "8", true},
}

// asked is a server, or a way to one.
type asked struct {
	name string
	ns   *testenv.NS
	cg   *testenv.Cgroup
	at   netip.AddrPort
	pid  int // of who answers
}

// direct is Netfence's server without interception.
const direct = "Netfence"

// BenchmarkNames is dnsperf asking Netfence's server at an attachment's own address, through the interception of an
// interface and of a cgroup, and other servers: the same names in the same order, forwarded to the same upstream, which
// answers at once. All ask in turn, so that noise meets them alike.
func BenchmarkNames(b *testing.B) {
	testenv.Require(b, testenv.Program("dnsperf"))
	for b.Loop() {
		benchNames(b)
	}
	b.ReportMetric(0, "ns/op") // of all together: nothing that anybody wants to know
}

func benchNames(b *testing.B) {
	s := newBenchNames(b)
	id := s.attach(b, s.job)
	s.attach(b, s.inside)
	listed := s.List(b)
	own := listed[slices.IndexFunc(listed, func(a harness.Attachment) bool { return a.ID == id })].DNSAddress
	server := netip.AddrPortFrom(netip.MustParseAddr(public), 53)
	all := []asked{
		{direct, s.Host, nil, netip.MustParseAddrPort(own), s.PID()},
		{"through an interface", s.Workload, nil, server, s.PID()},
		{"through a cgroup", s.Host, s.job.cg, server, s.PID()},
	}
	for _, p := range peers {
		pid, err := p.start(b, s.Host)
		if err != nil {
			fmt.Printf("%s is not compared: %v\n", p.name, err)
			continue
		}
		all = append(all, asked{p.name, s.Host, nil, p.at, pid})
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "load\tserver\tqueries/s\tof Netfence's\tits processor\tp50\tp99\tlost")
	for _, l := range loads {
		file := l.write(b)
		results := make([][]perf, len(all))
		for range benchRounds {
			for i, a := range all {
				results[i] = append(results[i], a.dnsperf(b, l, file))
			}
		}
		for i, a := range all {
			a.report(b, w, l, results[i], results[0])
		}
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	s.nobodyElseAsked(b)
}

// newBenchNames is a scene with an upstream that is no bottleneck, and a daemon.
func newBenchNames(b *testing.B) *named {
	s := newUnserved(b, testenv.VethDevice, "NETFENCE_LIMITS_LEARNED=65536", "NETFENCE_LIMITS_NAMES=65536")
	testenv.Respond(b, s.Outside, netip.AddrPortFrom(netip.MustParseAddr(upstream), 53), netip.MustParsePrefix(benchAddrs))
	s.Policy(b, "names.yaml", allowing("*.fresh.example", "*.cached.example"))
	s.Start(b)
	return s
}

// report prints a line of the table, of medians.
func (a asked) report(b *testing.B, w *tabwriter.Writer, l load, results, netfence []perf) {
	var ratios []float64
	for i, r := range results {
		ratios = append(ratios, r.qps/netfence[i].qps)
	}
	of := func(value func(perf) float64) float64 {
		var values []float64
		for _, r := range results {
			values = append(values, value(r))
		}
		return median(values)
	}
	report := func(value float64, what string) {
		b.ReportMetric(value, strings.ReplaceAll(l.name+":"+a.name+":"+what, " ", "_"))
	}
	qps, ratio, lost := of(func(p perf) float64 { return p.qps }), median(ratios), 0
	for _, r := range results {
		lost += r.lost
	}
	processor := of(func(p perf) float64 { return float64(p.processor) })
	report(qps, "q/s")
	report(ratio, "ratio")
	report(processor, "processor")
	fmt.Fprintf(w, "%s\t%s\t%.0f\t%.2f\t%v", l.name, a.name, qps, ratio, time.Duration(processor).Round(100*time.Nanosecond))
	if l.latencies {
		for _, at := range []int{50, 99} {
			d := of(func(p perf) float64 { return float64(p.latency[at]) })
			report(d, fmt.Sprint("p", at))
			fmt.Fprintf(w, "\t%v", time.Duration(d).Round(time.Microsecond))
		}
	} else {
		fmt.Fprint(w, "\t\t")
	}
	fmt.Fprintf(w, "\t%d\n", lost)
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

// write makes dnsperf's input.
func (l load) write(b *testing.B) string {
	var text strings.Builder
	for n := range l.names {
		fmt.Fprintf(&text, "n%d.%s A\n", n, l.zone)
	}
	file := filepath.Join(b.TempDir(), "queries")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	return file
}

// perf is what dnsperf found.
type perf struct {
	qps     float64
	lost    int
	latency map[int]time.Duration // by percentile
	// processor is what the server took for each query: less of a matter of luck than the clock's.
	processor time.Duration
}

// dnsperf asks for a while. An answer other than an address is an error.
func (a asked) dnsperf(b *testing.B, l load, file string) (p perf) {
	b.Helper()
	cmd := exec.Command("dnsperf", "-s", a.at.Addr().String(), "-p", strconv.Itoa(int(a.at.Port())), "-d", file,
		"-l", benchSeconds, "-c", "8", "-q", l.outstanding)
	if l.latencies {
		cmd.Args = append(cmd.Args, "-v")
	}
	// A pipe would have it wait for its reader.
	out, err := os.Create(filepath.Join(b.TempDir(), "dnsperf"))
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	before := processorTime(b, a.pid)
	testenv.Start(b, cmd, a.ns, a.cg)
	waitErr := cmd.Wait()
	took := processorTime(b, a.pid) - before
	text, err := os.ReadFile(out.Name())
	if err != nil || waitErr != nil {
		b.Fatalf("dnsperf: %v\n%s", errors.Join(waitErr, err), text)
	}
	var latencies []time.Duration
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		number := func(i int) float64 {
			if i < 0 || i >= len(fields) {
				b.Fatalf("dnsperf says %q", line)
			}
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				b.Fatalf("dnsperf says %q: %v", line, err)
			}
			return value
		}
		switch {
		case strings.HasPrefix(line, "> NOERROR "):
			latencies = append(latencies, time.Duration(number(len(fields)-1)*float64(time.Second)))
		case strings.Contains(line, "Queries per second:"):
			p.qps = number(3)
		case strings.Contains(line, "Queries completed:"):
			p.processor = took / time.Duration(max(number(2), 1))
		case strings.Contains(line, "Queries lost:"):
			p.lost = int(number(2))
		case strings.Contains(line, "Response codes:"):
			if len(fields) != 5 || fields[2] != "NOERROR" {
				b.Errorf("%s, %s: %s", l.name, a.name, strings.TrimSpace(line))
			}
		}
	}
	if p.qps == 0 || l.latencies && len(latencies) == 0 {
		b.Fatalf("dnsperf says nothing of use:\n%s", text)
	}
	slices.Sort(latencies)
	if l.latencies {
		p.latency = map[int]time.Duration{}
		for _, at := range []int{50, 99} {
			p.latency[at] = latencies[len(latencies)*at/100]
		}
	}
	return p
}

// processorTime is what a process has taken of processors.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	var ts unix.Timespec
	// clock_getcpuclockid(3): the complement of the process, and CPUCLOCK_SCHED.
	if err := unix.ClockGettime(int32(^uint32(pid)<<3|2), &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
