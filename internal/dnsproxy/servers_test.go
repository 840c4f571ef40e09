// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/policy"
)

func TestServers(t *testing.T) {
	host := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	named := resolve(t, records(t, "$ 60 IN A 192.0.2.2"))
	zone := resolve(t, records(t, "$ 60 IN A 192.0.2.3"))
	near := resolve(t, records(t, "$ 60 IN A 192.0.2.4"))
	p := allowlist("*")
	p.DNS.Forward = []policy.ZoneForward{
		{Zone: "corp.example", To: []netip.AddrPort{zone.addr}},
		{Zone: "near.corp.example", To: []netip.AddrPort{near.addr}},
	}
	inner := allowlist("*")
	outer := p
	outer.DNS.Upstreams = []netip.AddrPort{named.addr}
	o := Options{Forward: []policy.ZoneForward{{Zone: "daemon.example", To: []netip.AddrPort{near.addr}}, {Zone: "corp.example", Original: true}}}
	for _, tt := range []struct {
		policies []policy.Policy
		name     string
		want     string
	}{
		{[]policy.Policy{p}, "a.example", "192.0.2.1"},
		{[]policy.Policy{p}, "corp.example", "192.0.2.3"},
		{[]policy.Policy{p}, "a.corp.example", "192.0.2.3"},
		{[]policy.Policy{p}, "acorp.example", "192.0.2.1"},
		{[]policy.Policy{p}, "x.near.corp.example", "192.0.2.4"},
		{[]policy.Policy{p}, "x.daemon.example", "192.0.2.4"},
		{[]policy.Policy{inner, outer}, "a.example", "192.0.2.2"},
		{[]policy.Policy{inner, outer}, "corp.example", "192.0.2.3"},
		{[]policy.Policy{inner, p}, "a.example", "192.0.2.1"},
		{[]policy.Policy{without, inner}, "a.example", "192.0.2.1"},
		{[]policy.Policy{inner}, "corp.example", "zone corp.example is forwarded to the server that the workload asked, which is not known (give the zone's servers)"},
	} {
		w := serve(t, o, []*resolver{host}, tt.policies...)
		m := w.ask(t, tt.name, dns.TypeA)
		_, got := explained(m)
		if len(m.Answer) > 0 {
			got = rdata(m.Answer)[0]
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestOriginal holds that the server that the workload itself asked is asked for
// the zones that say so, and for nothing else; and only if all members would let
// the workload ask it by itself.
func TestOriginal(t *testing.T) {
	host := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	asked := resolve(t, records(t, "$ 60 IN A 192.0.2.2"))
	own := netip.MustParseAddrPort("127.128.0.7:53")
	forwards := func(p policy.Policy, ports ...policy.Ports) policy.Policy {
		p.DNS.Forward = []policy.ZoneForward{{Zone: "corp.example", Original: true}}
		for _, port := range ports {
			p.Allow = append(p.Allow, policy.Rule{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Ports: []policy.Ports{port}})
		}
		return p
	}
	port := asked.addr.Port()
	udp := policy.Ports{First: port, Last: port, Protocol: policy.UDP}
	tcp := policy.Ports{First: port, Last: port, Protocol: policy.TCP}
	all := policy.Ports{First: 1, Last: 65535}
	audited := forwards(allowlist("*"))
	audited.Audit = true
	const unknown = "which is not known"
	const denied = "which its rules do not allow"
	for _, tt := range []struct {
		name     string
		policies []policy.Policy
		query    string
		server   netip.AddrPort
		want     string
	}{
		{"a rule", []policy.Policy{forwards(allowlist("*"), udp)}, "a.corp.example", asked.addr, "192.0.2.2"},
		{"another zone", []policy.Policy{forwards(allowlist("*"), udp)}, "a.example", asked.addr, "192.0.2.1"},
		{"no rule", []policy.Policy{forwards(allowlist("*"))}, "a.corp.example", asked.addr, denied},
		{"a rule for TCP", []policy.Policy{forwards(allowlist("*"), tcp)}, "a.corp.example", asked.addr, denied},
		{"a rule for another port", []policy.Policy{forwards(allowlist("*"), policy.Ports{First: 53, Last: 53})}, "a.corp.example", asked.addr, denied},
		{"around it no rule", []policy.Policy{forwards(allowlist("*"), udp), allowlist("*")}, "a.corp.example", asked.addr, denied},
		{"around it no rule, names not filtered", []policy.Policy{forwards(allowlist("*"), udp), without}, "a.corp.example", asked.addr, denied},
		{"around it a rule", []policy.Policy{allowlist("*"), forwards(allowlist("*"), udp)}, "a.corp.example", asked.addr, denied},
		{"audit", []policy.Policy{audited}, "a.corp.example", asked.addr, "192.0.2.2"},
		{"its own DNS address", []policy.Policy{forwards(allowlist("*"), all)}, "a.corp.example", own, unknown},
		{"nobody", []policy.Policy{forwards(allowlist("*"), all)}, "a.corp.example", netip.AddrPort{}, unknown},
		{"a refused name", []policy.Policy{forwards(allowlist("b.corp.example"), udp)}, "a.corp.example", asked.addr, "blocked by netfence: no rule allows a.corp.example"},
	} {
		before := len(asked.queries())
		w := serve(t, Options{}, []*resolver{host}, tt.policies...)
		m := new(dns.Msg)
		if err := m.Unpack(w.handle(t.Context(), packed(t, questionFor(tt.query, dns.TypeA)), Peer{Index: index, Server: tt.server}, false)); err != nil {
			t.Fatal(err)
		}
		_, got := explained(m)
		if len(m.Answer) > 0 {
			got = rdata(m.Answer)[0]
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		if n := len(asked.queries()) - before; (n > 0) != (tt.want == "192.0.2.2") {
			t.Errorf("%s: %d queries reached it", tt.name, n)
		}
	}
}

// TestNoServers holds that the server never asks itself.
func TestNoServers(t *testing.T) {
	for _, tt := range []struct {
		servers []string
		err     error
		want    string
	}{
		{nil, errors.New("nameservers: none"), "nameservers: none"},
		{nil, nil, "no upstream server to ask (set dns.upstream)"},
		{[]string{"127.128.0.1:53", "[fd4e:4644:4e53::1]:53", "240.0.0.9:53", "[::ffff:127.200.0.1]:1053", "192.0.2.1:0"}, nil, "no upstream server to ask (set dns.upstream)"},
	} {
		var servers []netip.AddrPort
		for _, s := range tt.servers {
			servers = append(servers, netip.MustParseAddrPort(s))
		}
		w := serve(t, Options{Upstreams: func() ([]netip.AddrPort, error) { return servers, tt.err }}, nil, allowlist("*"))
		m := w.ask(t, "a.example", dns.TypeA)
		if _, text := explained(m); m.Rcode != dns.RcodeServerFailure || text != tt.want {
			t.Errorf("%v: %s, want %s", tt.servers, text, tt.want)
		}
	}
}
