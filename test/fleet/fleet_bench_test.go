// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// How many BenchmarkFleet connects, and the attachments of each.
const (
	benchHosts = 2_000
	benchEach  = 100
)

// BenchmarkFleet is a control plane in a process of its own, which has one core, and a fleet over loopback in this one,
// which has the other: what each host takes of the server's memory, what a change for all takes until the last has it,
// and what it is when all lose the server and come back at once. Beside the time on the clock stands what the server's
// process took of its core: the rest is the fleet's, and that of whoever else uses the machine.
func BenchmarkFleet(b *testing.B) {
	for b.Loop() {
		measureFleet(b, benchHosts, benchEach)
	}
	b.ReportMetric(0, "ns/op") // of all together: nothing that anybody wants to know
}

func measureFleet(b *testing.B, hosts, each int) {
	raiseFiles(b)
	cmd := plane.Command()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	testenv.Start(b, cmd, nil, nil)
	orders, answers := json.NewEncoder(stdin), json.NewDecoder(stdout)
	next := func() (a answer) {
		if err := answers.Decode(&a); err != nil {
			b.Fatalf("control plane: %v", err)
		}
		return a
	}
	f := newFleet(next().Address, hosts, each)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d hosts × %d attachments\ttook\tserver's core\tcommands\tserver's memory, peak\n", hosts, each)
	order := func(what, change string) answer {
		before := f.commands.Load()
		if err := orders.Encode(order{Change: change}); err != nil {
			b.Fatal(err)
		}
		a := next()
		if a.Outcome.Applied != a.Daemons*each || !a.Outcome.OK() {
			b.Fatalf("%s: %+v of %d daemons", what, a.Outcome, a.Daemons)
		}
		if what != "" {
			fmt.Fprintf(w, "%s\t%v\t%v\t%d\t%d MiB\n", what, a.Took.Round(time.Millisecond), a.CPU.Round(time.Millisecond),
				f.commands.Load()-before, a.Peak>>10)
		}
		return a
	}
	empty := order("", "")

	connected := func(what string) {
		before, start := f.commands.Load(), time.Now()
		if err := f.connect(b.Context()); err != nil {
			b.Fatal(err)
		}
		a := order("", "")
		took := time.Since(start)
		if a.Daemons != hosts {
			b.Fatalf("%d daemons, want %d", a.Daemons, hosts)
		}
		fmt.Fprintf(w, "%s\t%v\t\t%d\t%d MiB\n", what, took.Round(time.Millisecond), f.commands.Load()-before, a.Peak>>10)
		b.ReportMetric(float64(took), what)
	}
	connected("connect,_all_new")
	settled := order("", "")
	perHost := float64(settled.RSS-empty.RSS) / float64(hosts)
	fmt.Fprintf(w, "memory of each host\t%.0f KiB\n", perHost)
	b.ReportMetric(perHost, "KiB/host")

	shared := order("one policy for all, changed", "shared")
	b.ReportMetric(float64(shared.Took), "shared")
	b.ReportMetric(float64(shared.CPU), "shared-core")
	order("one each", "distinct")
	distinct := order("one each, changed", "distinct")
	b.ReportMetric(float64(distinct.Took), "distinct")
	b.ReportMetric(float64(distinct.CPU), "distinct-core")
	b.ReportMetric(float64(distinct.Peak)/1024, "distinct-MiB")
	f.disconnect()
	connected("all_reconnect,_nothing_changed")
	order("one policy for all again", "shared")
	f.disconnect()
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
}
