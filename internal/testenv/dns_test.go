// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var testZone = Zone{
	Records: []string{
		"www.test.example. 60 IN CNAME host.test.example.",
		"host.test.example. 60 IN CNAME other.example.",
		"other.example. 30 IN A 198.51.100.7",
		"other.example. 30 IN A 198.51.100.8",
		"other.example. 30 IN AAAA 2001:db8:100::7",
		"*.wild.example. 30 IN A 203.0.113.1",
		"svc.example. 60 IN HTTPS 1 . alpn=h2 ipv4hint=203.0.113.4 ipv6hint=2001:db8:200::4",
		"large.example. 60 IN A 203.0.113.9",
	},
	Beside:    map[string][]string{"x.wild.example.": {"unrelated.example. 60 IN A 203.0.113.200"}},
	Numbered:  map[string][]netip.Prefix{"burst.example.": {netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:100::/48")}},
	Truncated: []string{"large.example."},
	Failing:   map[string]int{"broken.example.": dns.RcodeServerFailure},
	Silent:    []string{"silent.example."},
}

// TestResolvers shows that each of them asks the server that it was told, and understands what it says.
func TestResolvers(t *testing.T) {
	Require(t, Root, Cgroup2)
	w := NewWorld(t, NewNS(t), VethDevice)
	server := ServeDNS(t, w.Outside, testZone, ForeignResolver4, ForeignResolver6)
	cg := NewCgroup(t)
	for _, by := range []Resolver{Glibc, Musl, GoResolver, Dig, Nslookup} {
		for _, to := range []string{ForeignResolver4, ForeignResolver6} {
			for _, overTCP := range []bool{false, true} {
				if overTCP && (by == Musl || by == Nslookup) {
					continue
				}
				name := fmt.Sprintf("%s %s tcp=%t", by, to, overTCP)
				t.Run(name, func(t *testing.T) {
					addr := netip.MustParseAddr(to)
					asked := func() int {
						return server.Asked(func(q Question) bool { return q.Name == "www.test.example." && q.Addr == addr && q.TCP == overTCP })
					}
					before := asked()
					for _, test := range []struct {
						name string
						ipv6 bool
						want string
					}{
						{"www.test.example", false, "[198.51.100.7 198.51.100.8]"},
						{"www.test.example", true, "[2001:db8:100::7]"},
						{"svc.example", true, "[]"},
						{"nosuch.example", false, "[]"},
						{"n258.burst.example", false, "[198.51.100.2]"},
						{"n258.burst.example", true, "[2001:db8:100::102]"},
					} {
						a := MustResolve(t, w.Workload, cg, Lookup{By: by, Server: to, Name: test.name, IPv6: test.ipv6, TCP: overTCP})
						if fmt.Sprint(a.Addrs) != test.want || a.Unknown != (test.want == "[]") {
							t.Errorf("%s: %+v, want %s", test.name, a, test.want)
						}
					}
					// musl asks again until its time is up, and glibc takes SERVFAIL over TCP for an unknown name.
					broken := MustResolve(t, w.Workload, cg, Lookup{By: by, Server: to, Name: "broken.example", TCP: overTCP, Wait: time.Second})
					if !broken.Failed() && (by != Glibc || !overTCP) {
						t.Errorf("broken.example: %+v, want a failure", broken)
					}
					if got := asked() - before; got != 2 {
						t.Errorf("the server was asked %d times, want 2", got)
					}
				})
			}
		}
	}
}

func TestNameserver(t *testing.T) {
	Require(t, Root)
	ns := NewNS(t)
	ns.Own(t, netip.MustParsePrefix("192.0.2.0/24"))
	s := ServeDNS(t, ns, testZone, "192.0.2.1", "192.0.2.2")
	dig := func(l Lookup) Answer {
		t.Helper()
		l.By = Dig
		if l.Server == "" {
			l.Server = "192.0.2.1"
		}
		return MustResolve(t, ns, nil, l)
	}
	if a := dig(Lookup{Name: "x.wild.example"}); !strings.Contains(a.Text, "unrelated.example.") {
		t.Errorf("no unrelated record: %s", a)
	}
	if a := dig(Lookup{Name: "nosuch.example"}); a.Status != "NXDOMAIN" || !a.Unknown {
		t.Errorf("unknown name: %+v", a)
	}
	if a := dig(Lookup{Name: "large.example"}); len(a.Addrs) != 1 {
		t.Errorf("truncated: %+v", a)
	}
	for _, overTCP := range []bool{false, true} {
		if n := s.Asked(func(q Question) bool { return q.Name == "large.example." && q.TCP == overTCP }); n != 1 {
			t.Errorf("truncated: asked %d times with TCP %t, want once", n, overTCP)
		}
	}
	dig(Lookup{Name: "other.example", Server: "192.0.2.2"})
	if n := s.Asked(func(q Question) bool { return q.Addr == netip.MustParseAddr("192.0.2.2") }); n != 1 || s.AskedFor("OTHER.example") != 1 {
		t.Errorf("asked %d times at the second address, %d times for the name, want once", n, s.AskedFor("other.example"))
	}
	if a := dig(Lookup{Name: "silent.example", Wait: time.Second}); a.Status != "timed out" || !a.Failed() {
		t.Errorf("silent: %+v", a)
	}
	s.Hang(true)
	if a := dig(Lookup{Name: "other.example", Wait: time.Second}); a.Status != "timed out" || s.AskedFor("other.example") != 2 {
		t.Errorf("hanging: %+v, asked %d times", a, s.AskedFor("other.example"))
	}
	s.Hang(false)
	s.Fail(true)
	if a := dig(Lookup{Name: "other.example"}); a.Status != "SERVFAIL" || !a.Failed() {
		t.Errorf("failing: %+v", a)
	}
	s.Fail(false)
	s.Serve(t, Zone{Records: []string{"other.example. 60 IN A 192.0.2.77"}})
	if a := dig(Lookup{Name: "other.example"}); !slices.Equal(a.Addrs, []netip.Addr{netip.MustParseAddr("192.0.2.77")}) {
		t.Errorf("new zone: %+v", a)
	}
}

func TestHTTPSRecordsAreServed(t *testing.T) {
	z, err := parseZone(testZone)
	if err != nil {
		t.Fatal(err)
	}
	reply := z.reply(new(dns.Msg).SetQuestion("svc.example.", dns.TypeHTTPS), false)
	if len(reply.Answer) != 1 || !strings.Contains(reply.Answer[0].String(), `ipv4hint="203.0.113.4"`) {
		t.Errorf("answer %v", reply.Answer)
	}
}

func TestNumberedAddr(t *testing.T) {
	for _, test := range []struct {
		prefix string
		n      int
		want   string
	}{
		{"198.18.0.0/15", 0, "198.18.0.0"},
		{"198.18.0.0/15", 65536 + 258, "198.19.1.2"},
		{"198.18.0.0/15", 131072 + 1, "198.18.0.1"},
		{"2001:db8::/32", 1 << 20, "2001:db8::10:0"},
	} {
		if got := NumberedAddr(netip.MustParsePrefix(test.prefix), test.n); got.String() != test.want {
			t.Errorf("%s, %d: %s, want %s", test.prefix, test.n, got, test.want)
		}
	}
}

func TestBurst(t *testing.T) {
	Require(t, Root)
	w := NewWorld(t, NewNS(t), VethDevice)
	ServeDNS(t, w.Outside, testZone, ForeignResolver4)
	EchoServer(t, w.Outside, 7)
	arrived := Observe(t, w.Outside, "eth0")
	for _, ipv6 := range []bool{false, true} {
		b := Burst{Server: netip.MustParseAddrPort(ForeignResolver4 + ":53"), Zone: "burst.example.", IPv6: ipv6,
			From: 1, Count: 100, UDP: 9, TCP: 7, TCPEach: 10}
		r := b.Run(t, w.Workload, nil)
		if r.First != "" || len(r.Addrs) != b.Count || r.Addrs[0] != NumberedAddr(testZone.Numbered["burst.example."][map[bool]int{true: 1}[ipv6]], 1) {
			t.Errorf("burst: %+v", r)
		}
		for _, addr := range r.Addrs {
			arrived.Await(t, 1, func(p Packet) bool { return p.Dst == addr && p.Port == 9 })
		}
		// Without a name server, without what it says, and to where nobody listens.
		b.Zone, b.Count = "nosuch.example.", 2
		if r := b.Run(t, w.Workload, nil); r.Failed != 2 || r.First == "" {
			t.Errorf("burst of unknown names: %+v", r)
		}
		b.Zone, b.TCP, b.TCPEach = "burst.example.", 8, 1
		if r := b.Run(t, w.Workload, nil); r.Unconnected != 2 {
			t.Errorf("burst to a closed port: %+v", r)
		}
	}
}
