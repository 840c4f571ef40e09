// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// The benchmarks print tables of medians over interleaved rounds: all cases of
// a round run one after the other, so that noise meets them alike.
const rounds = 11

type benchCase struct {
	name string
	run  func() time.Duration // one round; per operation
}

// table prints what each case takes.
func table(b *testing.B, title string, cases []benchCase) {
	b.Helper()
	took, _ := inTurn(rounds, cases)
	printTable(b, title+"\tmedian\tmin\tmax", cases, func(i int) string {
		median, least, most := spread(took[i])
		report(b, cases[i].name, median)
		return fmt.Sprintf("\t%v\t%v\t%v", median, least, most)
	})
}

// compare prints what each case takes more than the first: the median of what it
// took more in the same round, for the machine drifts by more than that.
func compare(b *testing.B, title string, rounds int, cases []benchCase) {
	b.Helper()
	took, more := inTurn(rounds, cases)
	printTable(b, title+"\tmedian\tmin\tmax\tover the first", cases, func(i int) string {
		median, least, most := spread(took[i])
		over, _, _ := spread(more[i])
		report(b, cases[i].name, median)
		report(b, cases[i].name+":over", over)
		return fmt.Sprintf("\t%v\t%v\t%v\t%+v", median, least, most, over)
	})
}

// inTurn returns what each case took in each round, and what more than the first.
func inTurn(rounds int, cases []benchCase) (took, more [][]time.Duration) {
	took, more = make([][]time.Duration, len(cases)), make([][]time.Duration, len(cases))
	for round := range rounds {
		for i, c := range cases {
			took[i] = append(took[i], c.run())
			more[i] = append(more[i], took[i][round]-took[0][round])
		}
	}
	return took, more
}

func printTable(b *testing.B, head string, cases []benchCase, row func(i int) string) {
	b.Helper()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, head)
	for i, c := range cases {
		fmt.Fprintf(w, "%s%s\n", c.name, row(i))
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op") // of all cases together: nothing that anybody wants to know
}

// report tells ./bench a figure.
func report(b *testing.B, name string, d time.Duration) {
	b.ReportMetric(float64(d.Nanoseconds()), strings.ReplaceAll(name, " ", "_"))
}

func spread(all []time.Duration) (median, least, most time.Duration) {
	slices.Sort(all)
	return all[len(all)/2], all[0], all[len(all)-1]
}
