// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"testing"
)

func TestNamesDecideAndGrant(t *testing.T) {
	https, ssh := Ports{443, 443, AnyProtocol}, Ports{22, 22, TCP}
	p := &Policy{Mode: ModeAllowlist, DNS: DNS{
		Mode: DNSAllowlist,
		Allow: []DomainRule{
			{Domain: "*.example.org", Ports: []Ports{https}},
			{Domain: "git.example.org", Ports: []Ports{ssh, https}},
			{Domain: "git.example.org", Private: true, Ports: []Ports{https}},
			{Domain: "open.example.org"},
		},
		Deny: []DomainRule{{Domain: "evil.example.org"}},
	}}
	n := p.names(nil)
	for _, c := range []struct {
		name    string
		allowed bool
		grant   Grant
	}{
		{"a.example.org.", true, Grant{Ports: []Ports{https}}},
		{"GIT.example.org", true, Grant{Ports: []Ports{ssh, https}, Private: true}},
		{"open.example.org", true, Grant{}},
		{"evil.example.org", false, Grant{}},
		{"example.org", false, Grant{}},
		{`a\.b.example.org`, false, Grant{}},
	} {
		g, ok := n.Grant(n.Decide(c.name))
		if ok != c.allowed || g.Key() != c.grant.Key() {
			t.Errorf("%s: got %+v, %v", c.name, g, ok)
		}
		if again, ok := n.GrantNow(c.name, false); ok != c.allowed || again.Key() != g.Key() {
			t.Errorf("%s: now %+v, %v", c.name, again, ok)
		}
		if _, ok := n.GrantNow(c.name, true); ok {
			t.Errorf("%s: what the control plane decided outlives proxy mode", c.name)
		}
	}
}

func TestNamesByMode(t *testing.T) {
	for _, c := range []struct {
		mode       Mode
		dns        DNSMode
		intercepts bool
		decision   Action
		teaches    bool
	}{
		{ModeAllowlist, DNSAllowlist, true, Deny, false},
		{ModeAllowlist, DNSDenylist, true, Allow, true},
		{ModeAllowlist, DNSProxy, true, Deny, false},
		{ModeAllowlist, DNSDisabled, false, Allow, false},
		{ModeDisabled, DNSDenylist, true, Allow, true},
		{ModeBlockAll, DNSDisabled, true, Deny, false},
		{ModeBlockAll, DNSDenylist, true, Deny, false},
		{Mode(99), DNSDenylist, true, Deny, false},
	} {
		n := (&Policy{Mode: c.mode, DNS: DNS{Mode: c.dns}}).names(nil)
		d := n.Decide("example.org")
		_, teaches := n.Grant(d)
		if n.Intercepts() != c.intercepts || d.Action != c.decision || teaches != c.teaches {
			t.Errorf("%v, dns %v: intercepts %v, %v, teaches %v", c.mode, c.dns, n.Intercepts(), d.Action, teaches)
		}
	}
	proxy := (&Policy{Mode: ModeAllowlist, DNS: DNS{Mode: DNSProxy}}).names(nil)
	if g, ok := proxy.GrantNow("example.org", true); !ok || !g.Proxy {
		t.Errorf("proxy: %+v, %v", g, ok)
	}
}

func TestNamesCovers(t *testing.T) {
	prefix := netip.MustParsePrefix
	n := (&Policy{Mode: ModeAllowlist, DNS: DNS{Mode: DNSAllowlist},
		Allow: []Rule{
			{Prefix: prefix("10.0.0.0/8")},
			{Prefix: prefix("10.9.9.9/32"), Ports: []Ports{{443, 443, TCP}}},
			{Prefix: prefix("192.168.0.0/16"), Deadline: 1},
		},
		Deny: []Rule{{Prefix: prefix("10.9.0.0/16")}, {Prefix: prefix("10.8.0.0/16"), Ports: []Ports{{25, 25, TCP}}}},
	}).names(nil)
	for addr, want := range map[string]bool{
		"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.9.1.1": false, "10.9.9.9": true, "10.8.1.1": true,
		"192.168.1.1": false, "172.16.0.1": false, "::a01:203": false,
	} {
		if got := n.Covers(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}
