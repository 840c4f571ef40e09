// SPDX-License-Identifier: Apache-2.0

// Command bench runs the benchmarks of this repository, as root and without a
// network, and ends with one table: what is aimed at, and what this machine has
// measured. It fails only where a benchmark does, never for a figure.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
)

// run is one `go test -bench`.
type run struct {
	title   string
	name    string // the benchmark
	pkg     string
	time    string // -benchtime
	metrics bool   // show its line of metrics: it prints no table
}

// suite is what one command measures.
type suite struct {
	runs []run
	rows []row
}

var suites = map[bool]suite{false: {runs, rows}, true: {nameRuns, nameRows}}

var runs = []run{
	{"A packet at an interface, the same each time", "BenchmarkPacket", "./internal/datapath", "1x", false},
	{"The first packet to a destination", "BenchmarkFirst", "./internal/datapath", "1x", false},
	{"All that a filter adds to a flood, as the sender pays for it", "BenchmarkFlood", "./internal/datapath", "1x", false},
	{"The daemon's work in the kernel", "BenchmarkControl", "./internal/datapath", "1x", false},
	{"Opening the datapath where nothing is", "BenchmarkOpen", "./internal/datapath", "1x", false},
	{"Ten thousand attachments", "BenchmarkAttach", "./test/e2e", "1x", false},
	{"Killed under load", "BenchmarkKilledUnderLoad", "./test/e2e", "1x", false},
	{"A look at the hooks of an attachment", "BenchmarkWatch", "./internal/datapath", "1s", true},
	{"The counters of 10,000 attachments", "BenchmarkCensus", "./internal/datapath", "1s", true},
	{"Control plane: a fleet", "BenchmarkFleet", "./test/fleet", "1x", false},
	{"Control plane: a real daemon", "BenchmarkRealDaemon", "./test/fleet", "1x", false},
	{"netfenced run", "BenchmarkTrue", "./internal/run", "30x", true},
	{"Queries", "BenchmarkServe", "./internal/dnsproxy", "1s", true},
	{"The state's share of an attach", ".", "./internal/state", "1s", true},
	{"Policies", ".", "./policy", "1s", true},
}

func main() {
	only := flag.String("run", "", "only benchmarks whose title or name the `expression` matches")
	names := flag.Bool("dns", false, "the benchmarks of names, beside other servers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := suites[*names].bench(ctx, *only, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (s suite) bench(ctx context.Context, only string, out io.Writer) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if os.Geteuid() != 0 {
		return errors.New("not root (it attaches filters and makes namespaces)")
	}
	measured := make(figures)
	var failed []error
	for _, r := range s.runs {
		if !wanted.MatchString(r.title + " " + r.name) {
			continue
		}
		fmt.Fprintf(out, "\n## %s (%s, %s)\n\n", r.title, r.name, r.pkg)
		if err := r.do(ctx, measured, out); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", r.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(append(failed, measured.report(s.rows, out))...)
}

func (r run) do(ctx context.Context, measured figures, out io.Writer) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench="+r.name+"$", "-benchtime="+r.time, "-timeout=20m", r.pkg)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		line := lines.Text()
		if !measured.take(line) && !isPreamble(line) || r.metrics && strings.HasPrefix(line, "Benchmark") {
			fmt.Fprintln(out, line)
		}
	}
	return errors.Join(lines.Err(), cmd.Wait())
}

// isPreamble is true for what go test says besides.
func isPreamble(line string) bool {
	for _, prefix := range []string{"goos:", "goarch:", "pkg:", "cpu:", "PASS", "ok  \t"} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}
