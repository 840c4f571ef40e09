// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// How much BenchmarkRealDaemon does.
const (
	benchChanges = 300
	benchAttach  = 10_000
)

// BenchmarkRealDaemon is netfenced under a control plane of this process, over loopback: from a change to the result that
// it is in force in the kernel; an attach, beside one whose policy comes with it; and a reconnect with many attachments.
func BenchmarkRealDaemon(b *testing.B) {
	testenv.Require(b, testenv.Root, testenv.Cgroup2)
	for b.Loop() {
		measureRealDaemon(b)
	}
	b.ReportMetric(0, "ns/op") // of all together: nothing that anybody wants to know
}

func measureRealDaemon(b *testing.B) {
	var decide decider
	decide.next(false)
	opts := controlplane.Options{Policy: decide.policy}
	s := newServer(b, "127.0.0.1:0", opts)
	d := harness.New(b, nil, "NETFENCE_CONTROL_PLANE_URL="+s.Address)
	d.Start(b)
	testenv.Eventually(b, "a connection", func() bool { return d.Status(b).ControlPlaneState == "connected" })
	client := d.Client(b)
	outer := testenv.NewCgroup(b)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "a real daemon\tp50\tp99")
	report := func(what, unit string, took []time.Duration) {
		slices.Sort(took)
		p50, p99 := took[len(took)/2], took[len(took)*99/100]
		fmt.Fprintf(w, "%s\t%v\t%v\n", what, p50.Round(10*time.Microsecond), p99.Round(10*time.Microsecond))
		b.ReportMetric(float64(p50), unit+"-p50")
		b.ReportMetric(float64(p99), unit+"-p99")
	}
	attach := func(name string, own bool) (string, time.Duration) {
		path := filepath.Join(outer.Path, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			b.Fatal(err)
		}
		request := &netfencev1.AttachRequest{Target: &netfencev1.AttachRequest_CgroupPath{CgroupPath: path}}
		if own {
			request.Policy = &netfencev1.BulkUpdate{
				Mode: netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST, AllowCidrs: []*netfencev1.CIDREntry{{Cidr: "10.0.0.0/8"}},
			}
		}
		start := time.Now()
		response, err := client.Attach(b.Context(), request)
		if err != nil {
			b.Fatal(err)
		}
		return response.GetId(), time.Since(start)
	}

	// They take turns, so that the machine's noise meets both.
	var asked, own []time.Duration
	var ids []string
	for i := range benchChanges {
		id, took := attach(fmt.Sprint("asked-", i), false)
		asked, ids = append(asked, took), append(ids, id)
		_, took = attach(fmt.Sprint("own-", i), true)
		own = append(own, took)
	}
	report("attach, its policy asked for", "attach", asked)
	report("attach, its policy in the request", "attach-own", own)

	var changes []time.Duration
	for i := range benchChanges {
		start := time.Now()
		outcome := s.outcome(b, s.Set(ids[i%len(ids)], rules(uint32(i), 1)))
		changes = append(changes, time.Since(start))
		if outcome.Applied != 1 {
			b.Fatalf("outcome %+v", outcome)
		}
	}
	report("a change, until it is in force", "change", changes)

	for i := len(ids); i < benchAttach; i++ {
		attach(fmt.Sprint("many-", i), false)
	}
	reconnect := func(what, unit string, distinct bool) {
		s.stop()
		testenv.Eventually(b, "the end of the stream", func() bool { return d.Status(b).ControlPlaneState != "connected" })
		decide.next(distinct)
		s = newServer(b, s.Address, opts)
		testenv.Eventually(b, "a stream", func() bool { ds := s.Daemons(); return len(ds) == 1 })
		since := s.Daemons()[0].Since
		for {
			if outcome := s.outcome(b, s.Refresh(controlplane.Selector{})); outcome.Applied == benchAttach {
				break
			}
		}
		took := time.Since(since)
		fmt.Fprintf(w, "%s\t%v\n", what, took.Round(time.Millisecond))
		b.ReportMetric(float64(took), unit)
	}
	reconnect("10,000 attachments reconnect, one policy, changed", "reconnect-changed", false)
	reconnect("10,000 attachments reconnect, one policy each, changed", "reconnect-distinct", true)
	s.stop()
	opts.Policy = decide.policy
	s = newServer(b, s.Address, opts)
	testenv.Eventually(b, "a stream", func() bool { ds := s.Daemons(); return len(ds) == 1 })
	since := s.Daemons()[0].Since
	for s.outcome(b, s.Refresh(controlplane.Selector{})).Applied != benchAttach {
	}
	fmt.Fprintf(w, "10,000 attachments reconnect, nothing changed\t%v\n", time.Since(since).Round(time.Millisecond))
	b.ReportMetric(float64(time.Since(since)), "reconnect-same")
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	d.Must(b, "detach", "--all")
	s.stop()
	d.Stop(b)
	outer.Remove(b)
}
