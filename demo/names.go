// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// What is said to come of a question.
const (
	resolves verdict = "resolves"
	nxdomain verdict = "NXDOMAIN"
	silent   verdict = "silence" // nobody answers
	unasked  verdict = "unasked" // whom nobody asked
)

// upstream is the resolver that the daemon asks, foreign the one that the container believes in.
const (
	upstream = "198.51.100.53"
	foreign  = testenv.ForeignResolver4
)

// internet is what upstream knows. Its answer for files holds a record that nobody asked for.
var internet = testenv.Zone{
	Records: []string{
		"files.pypi.example. 3600 IN CNAME edge.cdn.example.",
		"edge.cdn.example. 3600 IN A 203.0.113.20",
		"mirror.pypi.example. 3600 IN A 203.0.113.30",
		"paste.example. 3600 IN A 203.0.113.40",
	},
	Beside: map[string][]string{"files.pypi.example.": {"bank.example. 3600 IN A 203.0.113.66"}},
}

// hearsay is what foreign would say: an address of its own for every name.
var hearsay = testenv.Zone{Records: []string{"*.example. 3600 IN A 203.0.113.250"}}

// How long a name lasts in this play.
var (
	brief  = []string{"NETFENCE_DNS_UPSTREAM=" + upstream, "NETFENCE_DNS_MIN_TTL=1s", "NETFENCE_DNS_MAX_TTL=2s", "NETFENCE_DNS_GRACE=1s"}
	lasted = 3 * time.Second
)

// question is one name asked for.
type question struct {
	want   verdict
	by     testenv.Resolver
	server string
	tcp    bool
	name   string
	addr   string // of resolves
	why    string
}

// ask has a resolver in the place ask, and prints what it was told.
func (p *play) ask(ns *testenv.NS, cg *testenv.Cgroup, q question) testenv.Answer {
	p.goOn()
	wait := testenv.Patience
	if q.want == silent {
		wait = time.Second
	}
	a := testenv.MustResolve(p, ns, cg, testenv.Lookup{By: q.by, Server: q.server, Name: q.name, TCP: q.tcp, Wait: wait})
	got, happened := silent, "nobody answers"
	switch {
	case len(a.Addrs) == 1 && a.Addrs[0].String() == q.addr:
		got, happened = resolves, "is "+q.addr
	case len(a.Addrs) > 0:
		got, happened = resolves+" otherwise", fmt.Sprintf("is %v", a.Addrs)
	case a.Unknown:
		got, happened = nxdomain, "no such name"
	}
	p.verdict(q.want, got, fmt.Sprintf("%s %s", q.by, q.name), happened, q.why)
	return a
}

// containerAsks has the container ask, by dig.
func (p *play) containerAsks(q question) testenv.Answer {
	q.by = testenv.Dig
	if q.server == "" {
		q.server = foreign
	}
	return p.ask(p.world.Workload, nil, q)
}

func (p *play) names() {
	say(`
The container's resolver is ` + foreign + `, somebody else's, and the container knows nothing of Netfence, which answers in its
place and asks ` + upstream + `. Both count what they are asked.`)
	p.containerAsks(question{want: resolves, name: "files.pypi.example", addr: "203.0.113.20", why: "dns allow *.pypi.example"})
	p.try(p.container, trial{passes, testenv.TCP, "203.0.113.20:443", "learned before the answer was sent"})
	p.try(p.container, trial{dropped, testenv.TCP, "203.0.113.66:443", "bank.example came along in that answer, unasked"})
	p.try(p.container, trial{dropped, testenv.TCP, "203.0.113.30:443", "a name that nobody has asked for yet"})
	p.containerAsks(question{want: resolves, server: testenv.ForeignResolver6, tcp: true, name: "mirror.pypi.example", addr: "203.0.113.30", why: "asked of another resolver, over TCP and IPv6"})
	p.try(p.container, trial{passes, testenv.TCP, "203.0.113.30:443", "now it is learned"})

	no := p.containerAsks(question{want: nxdomain, name: "paste.example", why: "no rule names it,"})
	p.try(p.container, trial{dropped, testenv.TCP, "203.0.113.40:443", "nor its address"})
	if !strings.Contains(no.Extended, "Blocked") {
		p.Errorf("no extended error in the answer: %s", no)
	}
	prompt("dig paste.example        # says why")
	quote("EDE: " + no.Extended)

	// The policy is the cgroup's as well, and what it learns its own.
	p.try(p.process, trial{refused, testenv.TCP, "203.0.113.20:443", "what the container learned is its own"})
	p.ask(p.world.Host, p.cgroup, question{want: resolves, by: testenv.Glibc, server: "127.0.0.53", name: "files.pypi.example", addr: "203.0.113.20", why: "the process in the cgroup asks its stub resolver"})
	p.try(p.process, trial{passes, testenv.TCP, "203.0.113.20:443", "and has learned it itself"})
	p.nobodyAsked()
}

// nobodyAsked looks at who was asked for what.
func (p *play) nobodyAsked() {
	p.goOn()
	astray := p.wire.Sum(p, func(packet testenv.Packet) bool {
		return testenv.ToPort53(packet) && packet.Dst != netip.MustParseAddr(upstream)
	}).Count
	n := p.foreign.Asked(nil) + astray
	got := unasked
	if n != 0 {
		got = "asked"
	}
	p.verdict(unasked, got, "the resolver "+foreign, fmt.Sprintf("%d queries, %d packets arrived", n-astray, astray), "queries go from the daemon to its upstream,")
	if n := p.upstream.AskedFor("paste.example"); n != 0 {
		p.verdict(unasked, "asked", "the upstream, for paste.example", fmt.Sprintf("%d queries", n), "")
		return
	}
	p.verdict(unasked, unasked, "the upstream, for paste.example", "0 queries", "and not for what is refused")
}

func (p *play) expire() {
	say(`
A learned address lasts as long as the answer says, at least 30 s, at most an hour, and 30 s of grace. In this play it is 2 s
and 1 s of grace.`)
	p.containerAsks(question{want: resolves, name: "files.pypi.example", addr: "203.0.113.20", why: "asked anew"})
	answered := time.Now()
	conn := p.container.Connect(p, netip.MustParseAddrPort("203.0.113.20:443"))
	p.conn(conn, passes, "open: TCP 203.0.113.20:443", "a connection begins")
	p.run("policy", "show", p.containerID)
	select {
	case <-time.After(time.Until(answered.Add(lasted + 100*time.Millisecond))):
	case <-p.Context().Done():
	}
	gap()
	line(paint(dim, fmt.Sprintf("%.1f s later", time.Since(answered).Seconds())))
	gap()
	p.try(p.container, trial{dropped, testenv.TCP, "203.0.113.20:443", "its time is up, by the kernel's clock"})
	p.conn(conn, passes, "open: TCP 203.0.113.20:443", "what was open goes on")
	p.containerAsks(question{want: resolves, name: "files.pypi.example", addr: "203.0.113.20", why: "who asks again"})
	p.try(p.container, trial{passes, testenv.TCP, "203.0.113.20:443", "is let through again"})
}
