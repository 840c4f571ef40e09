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
	o := Options{Forward: []policy.ZoneForward{{Zone: "daemon.example", To: []netip.AddrPort{near.addr}}, {Zone: "corp.example", Original: true}, {Zone: "cluster.local", Original: true}}}
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
		{[]policy.Policy{p}, "x.cluster.local", "zone cluster.local is forwarded to the original server, which is not supported yet (give its addresses)"},
		{[]policy.Policy{inner}, "corp.example", "zone corp.example is forwarded to the original server, which is not supported yet (give its addresses)"},
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
	for _, r := range []*resolver{host, named, zone, near} {
		for _, q := range r.queries() {
			if strings.Contains(q.Question[0].Name, "cluster") {
				t.Errorf("%v was asked", q.Question)
			}
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
