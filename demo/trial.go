// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// verdict is what a trial is said to come to.
type verdict string

const (
	passes  verdict = "passes"
	dropped verdict = "dropped" // without a word: the sender hears nothing
	refused verdict = "refused" // the sender is told at once: EPERM
)

// silence is how long is waited for an answer that is not to come.
const silence = 300 * time.Millisecond

// trial is one thing tried.
type trial struct {
	want verdict
	kind testenv.ProbeKind
	to   string // address:port
	why  string
}

// try has a workload try, prints what came of it, and fails the play if that is not what was stated. Two sides are
// heard: the sender, and whoever watches the wire outside.
func (p *play) try(w *testenv.Workload, t trial) {
	p.goOn()
	to := netip.MustParseAddrPort(t.to)
	probe := testenv.Probe{Kind: t.kind, To: to, Wait: silence}
	if t.want == passes {
		probe.Wait = testenv.Patience
	}
	// By port too: a connection that passed before may still be closing.
	same := func(packet testenv.Packet) bool {
		return packet.Dst == to.Addr() && (packet.Port == to.Port() || t.kind == testenv.Echo)
	}
	before := p.wire.Sum(p, same).Count
	out := w.Probe(p, probe)
	arrived := p.wire.Sum(p, same).Count - before

	var got verdict
	var happened string
	switch {
	case out.Answered:
		got, happened = passes, "answered after "+out.Elapsed.Round(10*time.Microsecond).String()
	case arrived > 0:
		got, happened = passes, fmt.Sprintf("no answer, but %d packets got out", arrived)
	case out.Errno == unix.EPERM && out.Elapsed < silence:
		got, happened = refused, fmt.Sprintf("%s: EPERM after %s", out.Call, out.Elapsed.Round(time.Microsecond))
	case out.Errno == 0:
		got, happened = dropped, "silence; outside nothing arrived"
	default:
		got, happened = dropped, fmt.Sprintf("%s: %s", out.Call, out.Errno)
	}
	p.verdict(t.want, got, protocols[t.kind]+" "+strings.TrimSuffix(t.to, ":0"), happened, t.why)
}

var protocols = map[testenv.ProbeKind]string{
	testenv.TCP:          "TCP",
	testenv.UDPConnected: "UDP",
	testenv.UDPSendto:    "UDP (sendto)",
	testenv.Echo:         "ping",
}

// verdict prints one, and keeps the score.
func (p *play) verdict(want, got verdict, tried, happened, why string) {
	p.tried++
	mark, hue := "✓", green
	if got != want {
		mark, hue = "✗", red
		why = paint(red, "stated: "+string(want)+". ") + why
	}
	line(paint(hue, fmt.Sprintf("%s %-8s", mark, got)) + fmt.Sprintf(" %-31s  %-32s  %s", tried, happened, why))
	if got != want {
		p.Errorf("%s: %s, not %s", tried, got, want)
	}
}

// conn tries an open connection: passes while what is written comes back.
func (p *play) conn(c *testenv.Conn, want verdict, tried, why string) {
	p.goOn()
	wait := silence
	if want == passes {
		wait = testenv.Patience
	}
	got, happened := dropped, "nothing comes back any more"
	if c.Echoes(p, wait) {
		got, happened = passes, "what was written comes back"
	}
	p.verdict(want, got, tried, happened, why)
}
