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
// a round run one after the other, so that noise meets them alike. What a case
// takes over the first is the median of what it took more in the same round.
const rounds = 11

type benchCase struct {
	name string
	run  func() time.Duration // one round; per operation
}

func table(b *testing.B, title string, cases []benchCase) {
	b.Helper()
	tableOf(b, title, rounds, cases)
}

func tableOf(b *testing.B, title string, rounds int, cases []benchCase) {
	b.Helper()
	took, more := make([][]time.Duration, len(cases)), make([][]time.Duration, len(cases))
	for round := range rounds {
		for i, c := range cases {
			took[i] = append(took[i], c.run())
			more[i] = append(more[i], took[i][round]-took[0][round])
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tmedian\tmin\tmax\tover the first\n", title)
	b.ReportMetric(0, "ns/op") // of all cases together: nothing that anybody wants to know
	for i, c := range cases {
		slices.Sort(took[i])
		slices.Sort(more[i])
		median, over := took[i][rounds/2], more[i][rounds/2]
		fmt.Fprintf(w, "%s\t%v\t%v\t%v\t%+v\n", c.name, median, took[i][0], took[i][rounds-1], over)
		for unit, value := range map[string]time.Duration{c.name: median, c.name + ":over": over} { // for ./bench
			b.ReportMetric(float64(value.Nanoseconds()), strings.ReplaceAll(unit, " ", "_"))
		}
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
}
