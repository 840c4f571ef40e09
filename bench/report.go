// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// figures are what benchmarks have reported, by benchmark and unit.
type figures map[string]float64

// take reads a line of results (https://go.dev/design/14313-benchmark-format). A
// unit has underscores for spaces.
func (f figures) take(line string) bool {
	fields := strings.Fields(line)
	if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
		return false
	}
	name := fields[0]
	if i := strings.LastIndexByte(name, '-'); i > 0 { // the number of processors
		name = name[:i]
	}
	for i := 2; i+1 < len(fields); i += 2 {
		value, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return false
		}
		f[name+" "+strings.ReplaceAll(fields[i+1], "_", " ")] = value
	}
	return true
}

// report prints the rows.
func (f figures) report(rows []row, out io.Writer) error {
	fmt.Fprint(out, "\n## What is aimed at, and what was measured here\n\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\treach\tmeasured\tbeside it")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.what, r.reach, f.tell(r.measured), f.tell(r.beside))
	}
	return w.Flush()
}

// part shows something of what was measured, nothing if it was not.
type part func(figures) (string, bool)

// tell joins the parts that are known; "–" where none is.
func (f figures) tell(parts []part) string {
	var known []string
	for _, p := range parts {
		if s, ok := p(f); ok {
			known = append(known, s)
		}
	}
	if len(known) == 0 {
		return "–"
	}
	return strings.Join(known, "; ")
}

// figure is shown in the format, which has a %s for each of the values.
func figure(format string, values ...part) part {
	return func(f figures) (string, bool) {
		shown := make([]any, len(values))
		for i, value := range values {
			s, ok := value(f)
			if !ok {
				return "", false
			}
			shown[i] = s
		}
		return fmt.Sprintf(format, shown...), true
	}
}

// took is a time, reported in nanoseconds.
func took(name string) part {
	return func(f figures) (string, bool) {
		value, ok := f[name]
		d := time.Duration(value)
		switch {
		case d.Abs() < 5*time.Microsecond:
			return fmt.Sprintf("%d ns", d.Nanoseconds()), ok
		case d.Abs() < time.Millisecond:
			return fmt.Sprintf("%.3g µs", float64(d)/float64(time.Microsecond)), ok
		}
		return fmt.Sprintf("%.3g ms", float64(d)/float64(time.Millisecond)), ok
	}
}

// number is what is no time.
func number(name string) part {
	return func(f figures) (string, bool) {
		value, ok := f[name]
		if value == math.Trunc(value) {
			return fmt.Sprintf("%.0f", value), ok
		}
		return fmt.Sprintf("%.1f", value), ok
	}
}

// rate is what happens a second.
func rate(name string) part {
	return func(f figures) (string, bool) {
		value, ok := f[name]
		return fmt.Sprintf("%.1fk/s", value/1000), ok
	}
}

// ratio was computed by the benchmark, from what was measured side by side.
func ratio(name string) part {
	return func(f figures) (string, bool) {
		value, ok := f[name]
		return fmt.Sprintf("%.2f×", value), ok
	}
}

// times is how many times more one is than the other.
func times(more, less string) part {
	return func(f figures) (string, bool) {
		if f[more] <= 0 || f[less] <= 0 {
			return "", false
		}
		return fmt.Sprintf("%.1f×", f[more]/f[less]), true
	}
}
