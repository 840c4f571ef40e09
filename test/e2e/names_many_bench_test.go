// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
)

// How many attachments BenchmarkManyNames and BenchmarkKilledNames have.
const (
	askingCgroups = 1_000
	idleCgroups   = 10_000
	askingClients = 200
	idleTime      = 30 * time.Second // after which they are idle, and the daemon too
	killedRounds  = 5
)

// BenchmarkManyNames is a thousand attachments that ask at once, through the interception of cgroups, beside one that
// asks as much from as many sockets: first with ten thousand more that are idle, then without these.
func BenchmarkManyNames(b *testing.B) {
	for b.Loop() {
		s := newBenchNames(b)
		before := processMemory(b, s.PID())
		_, remove := s.attachCgroups(b, idleCgroups)
		<-time.After(idleTime)
		daemon := float64(processMemory(b, s.PID())-before) / idleCgroups
		b.ReportMetric(daemon, "idle-KiB")
		fmt.Printf("daemon: %.1f KiB for each idle attachment\n", daemon)
		paths, _ := s.attachCgroups(b, askingCgroups)
		s.askAtOnce(b, paths, "beside_idle")
		remove()
		testenv.Eventually(b, "the idle are gone", func() bool { return len(s.List(b)) == askingCgroups })
		s.askAtOnce(b, paths, "alone")
		s.nobodyElseAsked(b)
	}
	b.ReportMetric(0, "ns/op")
}

// askAtOnce has one attachment and all of them ask in turn.
func (s *named) askAtOnce(b *testing.B, paths []string, when string) {
	b.Helper()
	const each = 2 * time.Second
	askers := []*testenv.Askers{s.ask(b, paths[:1], len(paths), 50), s.ask(b, paths, len(paths), 50)}
	var rates [2][]float64
	for range benchRounds {
		for i, a := range askers {
			r := a.Ask(b, each)
			if r.Unanswered != 0 {
				b.Errorf("%d of %d queries without an answer: %s", r.Unanswered, r.Answered+r.Unanswered, r.Error)
			}
			rates[i] = append(rates[i], float64(r.Answered)/each.Seconds())
		}
	}
	one, many := median(rates[0]), median(rates[1])
	b.ReportMetric(one, when+":one-q/s")
	b.ReportMetric(many, when+":many-q/s")
	fmt.Printf("%s: one attachment asks %.0f/s, %d ask %.0f/s\n", when, one, len(paths), many)
}

// BenchmarkKilledNames has the daemon killed and started again while clients of 200 attachments out of ten thousand
// ask: how long until each has an answer again, and whether anybody else was asked meanwhile.
func BenchmarkKilledNames(b *testing.B) {
	for b.Loop() {
		s := newBenchNames(b)
		paths, _ := s.attachCgroups(b, idleCgroups)
		clients := s.ask(b, paths[:askingClients], askingClients, askingClients)
		var first, all, ready []float64
		refused := 0
		for range killedRounds {
			end := clients.Begin(b, time.Second)
			s.Kill(b)
			if r := end(); r.Unanswered == 0 {
				b.Error("nobody noticed that the daemon was killed")
			} else {
				refused += r.Unanswered
			}
			since := time.Now()
			end = clients.Begin(b, 0)
			s.Start(b)
			ready = append(ready, float64(time.Since(since)))
			r := end()
			first, all = append(first, float64(r.First)), append(all, float64(r.All))
			refused += r.Unanswered
		}
		foreign := s.Arrived.Sum(b, func(p testenv.Packet) bool {
			return testenv.ToPort53(p) && p.Dst != netip.MustParseAddr(upstream)
		}).Count
		if foreign != 0 {
			b.Errorf("%d queries reached a foreign resolver", foreign)
		}
		b.ReportMetric(float64(foreign), "foreign")
		b.ReportMetric(float64(refused), "unanswered")
		b.ReportMetric(median(first), "first")
		b.ReportMetric(median(all), "all")
		b.ReportMetric(median(ready), "ready")
		fmt.Printf("killed %d times: %d queries without an answer meanwhile, %d to a foreign resolver; ready %v after start, first answer %v, all clients %v\n",
			killedRounds, refused, foreign, time.Duration(median(ready)).Round(time.Millisecond),
			time.Duration(median(first)).Round(time.Millisecond), time.Duration(median(all)).Round(time.Millisecond))
	}
	b.ReportMetric(0, "ns/op")
}

// attachCgroups makes and attaches n cgroups, and returns their paths and how to remove all.
func (s *named) attachCgroups(b *testing.B, n int) (paths []string, remove func()) {
	b.Helper()
	requests, remove := makeCgroups(b, nil, n)
	client := s.Client(b)
	for _, request := range requests {
		if _, err := client.Attach(b.Context(), request); err != nil {
			b.Fatal(err)
		}
		paths = append(paths, request.GetTarget().(*netfencev1.AttachRequest_CgroupPath).CgroupPath)
	}
	return paths, remove
}

// ask starts askers in the cgroups, who believe that they ask a public resolver.
func (s *named) ask(b *testing.B, cgroups []string, sockets, outstanding int) *testenv.Askers {
	b.Helper()
	a := &testenv.Askers{Server: netip.AddrPortFrom(netip.MustParseAddr(public), 53), Zone: "fresh.example.",
		Cgroups: cgroups, Sockets: sockets, Outstanding: outstanding}
	a.Start(b, s.Host)
	return a
}
