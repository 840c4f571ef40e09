// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/vishvananda/netlink"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// How many BenchmarkAttach attaches.
const (
	benchCgroups    = 10_000
	benchInterfaces = 1_000
)

// BenchmarkAttach is what an attach takes through the local API, the embedded control plane and one policy file for
// all, from the first to the last of many, and what each costs in memory: the daemon's own, and the kernel's beyond
// the maps, which are there before, and beyond the targets themselves.
func BenchmarkAttach(b *testing.B) {
	testenv.Require(b, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	for b.Loop() {
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "attach\tfirst tenth p50\tp99\tlast tenth p50\tp99\tkernel each\tdaemon each\tdetach all")
		attachMany(b, w, "cgroup", benchCgroups, makeCgroups)
		attachMany(b, w, "interface", benchInterfaces, makeInterfaces)
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
	}
}

// attachMany prints a line of the table. makeTargets makes n targets in a namespace, and returns how to ask for each and
// how to remove all.
func attachMany(b *testing.B, w *tabwriter.Writer, what string, n int,
	makeTargets func(*testing.B, *testenv.NS, int) (requests []*netfencev1.AttachRequest, remove func())) {
	ns := testenv.NewNS(b)
	requests, remove := makeTargets(b, ns, n)
	d := harness.New(b, ns)
	d.Policy(b, "agents.yaml", "mode: allowlist\nallow: [10.0.0.0/8, 203.0.113.0/24, \"[2001:db8::/32]:443\", pypi.org]\ndeny: [10.9.0.0/16]\n")
	d.Start(b)
	client := d.Client(b)
	if _, err := client.List(b.Context(), &netfencev1.ListRequest{}); err != nil {
		b.Fatal(err)
	}

	kernelBefore, daemonBefore := kernelMemory(b), processMemory(b, d.PID())
	took := make([]time.Duration, n)
	for i, request := range requests {
		start := time.Now()
		if _, err := client.Attach(b.Context(), request); err != nil {
			b.Fatalf("attach %d: %v", i, err)
		}
		took[i] = time.Since(start)
	}
	kernel, daemon := kernelMemory(b)-kernelBefore, processMemory(b, d.PID())-daemonBefore
	if live := len(d.List(b)); live != n {
		b.Errorf("%d attachments, want %d", live, n)
	}
	start := time.Now()
	d.Must(b, "detach", "--all")
	detached := time.Since(start)
	d.Stop(b)
	remove()

	b.ReportMetric(0, "ns/op")                                                      // of both together: nothing that anybody wants to know
	report := func(value float64, of string) { b.ReportMetric(value, what+":"+of) } // for ./bench
	report(float64(kernel)/float64(n), "kernel-KiB")
	report(float64(daemon)/float64(n), "daemon-KiB")
	fmt.Fprintf(w, "%s ×%d", what, n)
	for _, tenth := range []struct {
		name string
		took []time.Duration
	}{{"first", slices.Clone(took[:n/10])}, {"last", slices.Clone(took[n-n/10:])}} {
		slices.Sort(tenth.took)
		for _, at := range []int{50, 99} {
			d := tenth.took[len(tenth.took)*at/100]
			fmt.Fprintf(w, "\t%v", d.Round(10*time.Microsecond))
			report(float64(d.Nanoseconds()), fmt.Sprintf("%s-p%d", tenth.name, at))
		}
	}
	fmt.Fprintf(w, "\t%.1f KiB\t%.1f KiB\t%v\n", float64(kernel)/float64(n), float64(daemon)/float64(n), detached.Round(10*time.Millisecond))
}

func makeCgroups(b *testing.B, _ *testenv.NS, n int) (requests []*netfencev1.AttachRequest, remove func()) {
	outer := testenv.NewCgroup(b)
	for i := range n {
		path := filepath.Join(outer.Path, fmt.Sprint("job-", i))
		if err := os.Mkdir(path, 0o755); err != nil {
			b.Fatal(err)
		}
		requests = append(requests, &netfencev1.AttachRequest{Target: &netfencev1.AttachRequest_CgroupPath{CgroupPath: path}})
	}
	return requests, func() { outer.Remove(b) }
}

func makeInterfaces(b *testing.B, ns *testenv.NS, n int) (requests []*netfencev1.AttachRequest, remove func()) {
	const group = 77
	ns.Do(func() {
		for i := range n {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.Group = fmt.Sprint("host", i), group
			pair := netlink.NewVeth(attrs)
			pair.PeerName = fmt.Sprint("peer", i)
			if err := netlink.LinkAdd(pair); err != nil {
				b.Fatalf("add %s: %v", pair.Name, err)
			}
			requests = append(requests, &netfencev1.AttachRequest{Target: &netfencev1.AttachRequest_InterfaceName{InterfaceName: pair.Name}})
		}
	})
	return requests, func() {} // they go with the namespace
}

// kernelMemory is what the kernel has taken for itself, in KiB. Others take from it too: a quiet machine gives a
// steadier figure.
func kernelMemory(b *testing.B) (kib int) {
	b.Helper()
	return readKiB(b, "/proc/meminfo", "Slab:", "Percpu:", "VmallocUsed:", "KernelStack:", "PageTables:")
}

// processMemory is what a process has for itself, in KiB: neither its program nor files.
func processMemory(b *testing.B, pid int) (kib int) {
	b.Helper()
	return readKiB(b, filepath.Join("/proc", strconv.Itoa(pid), "status"), "RssAnon:")
}

// readKiB sums lines of a file of proc(5) that are in kB.
func readKiB(b *testing.B, path string, names ...string) (sum int) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || !slices.Contains(names, fields[0]) {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			b.Fatalf("%s: %v", path, err)
		}
		sum += n
	}
	return sum
}
