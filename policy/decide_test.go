// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// rules reads address rules in short form.
func rules(t testing.TB, texts ...string) []Rule {
	t.Helper()
	var rules []Rule
	for _, s := range texts {
		r, _, err := Parse(s)
		if err != nil || r == nil {
			t.Fatalf("Parse(%q) = %v, %v", s, r, err)
		}
		rules = append(rules, *r)
	}
	return rules
}

// tcp reads "10.0.0.1:443" as a flow; "10.0.0.1" goes to port 80.
func tcp(s string) Flow { return flowTo(s, TCP) }
func udp(s string) Flow { return flowTo(s, UDP) }

func flowTo(s string, p Protocol) Flow {
	if to, err := netip.ParseAddrPort(s); err == nil {
		return Flow{Addr: to.Addr(), Port: to.Port(), Protocol: p}
	}
	return Flow{Addr: netip.MustParseAddr(s), Port: 80, Protocol: p}
}

func icmp(s string) Flow {
	return Flow{Addr: netip.MustParseAddr(s), Protocol: 1, Portless: true}
}

func fragment(f Flow) Flow {
	f.Port, f.Portless = 0, true
	return f
}

func TestDecide(t *testing.T) {
	tests := []struct {
		name        string
		mode        Mode
		allow, deny []string
		pass, drop  []Flow
	}{
		{
			name: "block-all drops whatever the rules say", mode: ModeBlockAll,
			allow: []string{"0.0.0.0/0", "::/0"},
			drop:  []Flow{tcp("10.0.0.1"), udp("2001:db8::1"), icmp("10.0.0.1")},
		},
		{
			name: "disabled passes whatever the rules say", mode: ModeDisabled,
			deny: []string{"0.0.0.0/0", "::/0"},
			pass: []Flow{tcp("10.0.0.1"), udp("2001:db8::1"), icmp("10.0.0.1"), tcp("64:ff9b::a00:1")},
		},
		{
			name: "an unknown mode is closed", mode: 77,
			allow: []string{"0.0.0.0/0"},
			drop:  []Flow{tcp("10.0.0.1")},
		},
		{
			name: "allowlist", mode: ModeAllowlist,
			allow: []string{"10.0.0.0/8", "2001:db8::/32", "192.0.2.1"},
			pass:  []Flow{tcp("10.0.0.0"), udp("10.255.255.255"), icmp("10.1.1.1"), tcp("2001:db8::"), udp("192.0.2.1"), fragment(tcp("10.0.0.1"))},
			drop:  []Flow{tcp("11.0.0.0"), tcp("9.255.255.255"), tcp("192.0.2.2"), icmp("2001:db9::"), tcp("::a00:1")},
		},
		{
			name: "denylist", mode: ModeDenylist,
			deny: []string{"10.0.0.0/8", "2001:db8::/32"},
			pass: []Flow{tcp("11.0.0.0"), tcp("2001:db9::"), icmp("192.0.2.1")},
			drop: []Flow{tcp("10.0.0.1"), icmp("2001:db8::1")},
		},
		{
			name: "the longest prefix wins, in both modes", mode: ModeAllowlist,
			allow: []string{"10.0.0.0/8", "10.1.2.0/24"}, deny: []string{"10.1.0.0/16", "10.1.2.3"},
			pass: []Flow{tcp("10.0.0.1"), tcp("10.1.2.4"), tcp("10.2.0.1")},
			drop: []Flow{tcp("10.1.0.1"), tcp("10.1.2.3")},
		},
		{
			name: "an allow inside a deny in a denylist", mode: ModeDenylist,
			allow: []string{"10.1.0.0/16"}, deny: []string{"10.0.0.0/8"},
			pass: []Flow{tcp("10.1.0.1"), tcp("192.0.2.1")},
			drop: []Flow{tcp("10.2.0.1")},
		},
		{
			name: "on a tie deny wins", mode: ModeAllowlist,
			allow: []string{"10.0.0.0/8", "192.0.2.1:443", "192.0.2.2", "192.0.2.3:443"},
			deny:  []string{"10.0.0.0/8", "192.0.2.1:443", "192.0.2.2:443", "192.0.2.3"},
			pass:  []Flow{tcp("192.0.2.2:80"), icmp("192.0.2.2")},
			drop:  []Flow{tcp("10.0.0.1"), tcp("192.0.2.1:443"), tcp("192.0.2.2:443"), udp("192.0.2.2:443"), tcp("192.0.2.3:443")},
		},
		{
			name: "a port rule speaks of its ports only", mode: ModeAllowlist,
			allow: []string{"10.0.0.0/8:443", "10.0.1.0/24:53/udp", "[2001:db8::/32]:8000-8100/tcp"},
			pass: []Flow{tcp("10.0.0.1:443"), udp("10.0.0.1:443"), udp("10.0.1.1:53"), tcp("10.0.1.1:443"),
				tcp("[2001:db8::1]:8000"), tcp("[2001:db8::1]:8100")},
			drop: []Flow{tcp("10.0.0.1:80"), icmp("10.0.0.1"), tcp("10.0.1.1:53"), udp("10.0.1.1:54"), fragment(tcp("10.0.0.1:443")),
				tcp("[2001:db8::1]:7999"), tcp("[2001:db8::1]:8101"), udp("[2001:db8::1]:8000"),
				{Addr: netip.MustParseAddr("10.0.0.1"), Protocol: 132, Port: 443}},
		},
		{
			name: "a port rule does not hide the covering prefix", mode: ModeAllowlist,
			allow: []string{"10.0.0.0/8"}, deny: []string{"10.0.0.1:25/tcp"},
			pass: []Flow{tcp("10.0.0.1:80"), udp("10.0.0.1:25"), icmp("10.0.0.1"), fragment(tcp("10.0.0.1:25"))},
			drop: []Flow{tcp("10.0.0.1:25")},
		},
		{
			name: "IPv4-mapped is judged as IPv4", mode: ModeAllowlist,
			allow: []string{"10.0.0.0/8", "::ffff:192.0.2.0/120"}, deny: []string{"::ffff:10.0.0.9"},
			pass: []Flow{tcp("::ffff:10.0.0.1"), tcp("10.0.0.1"), tcp("192.0.2.77")},
			drop: []Flow{tcp("::ffff:11.0.0.1"), tcp("10.0.0.9"), tcp("::ffff:10.0.0.9")},
		},
		{
			name: "::/0 is not IPv4", mode: ModeAllowlist,
			allow: []string{"::/0", "::/90"},
			pass:  []Flow{tcp("2001:db8::1"), tcp("::1"), tcp("::")},
			drop:  []Flow{tcp("10.0.0.1"), tcp("::ffff:10.0.0.1"), tcp("::ffff:0.0.0.0")},
		},
		{
			name: "0.0.0.0/0 is not IPv6", mode: ModeDenylist,
			deny: []string{"0.0.0.0/0"},
			pass: []Flow{tcp("2001:db8::1"), tcp("::1"), tcp("::")},
			drop: []Flow{tcp("10.0.0.1"), tcp("::ffff:10.0.0.1"), tcp("0.0.0.0")},
		},
		{
			name: "embedded IPv4 needs both to pass", mode: ModeAllowlist,
			allow: []string{"::/0", "10.0.0.0/8"},
			pass: []Flow{tcp("64:ff9b::10.0.0.1"), tcp("2002:a00:1::1"), tcp("::10.0.0.1"), tcp("::"), tcp("::1"),
				tcp("64:ff9b:1::11.0.0.1"), tcp("2003:b00:1::1")},
			drop: []Flow{tcp("64:ff9b::11.0.0.1"), tcp("2002:b00:1::1"), tcp("::11.0.0.1"), tcp("::2")},
		},
		{
			name: "the embedded alone does not suffice", mode: ModeAllowlist,
			allow: []string{"10.0.0.0/8"},
			drop:  []Flow{tcp("64:ff9b::10.0.0.1"), tcp("2002:a00:1::1"), tcp("::10.0.0.1")},
		},
		{
			name: "a denied embedded address", mode: ModeDenylist,
			deny: []string{"169.254.169.254", "10.0.0.0/8:25"},
			pass: []Flow{tcp("64:ff9b::192.0.2.1"), tcp("64:ff9b::10.0.0.1")},
			drop: []Flow{tcp("64:ff9b::169.254.169.254"), tcp("2002:a9fe:a9fe::"), tcp("::169.254.169.254"), tcp("[64:ff9b::10.0.0.1]:25")},
		},
		{
			name: "link-local is not special", mode: ModeAllowlist,
			allow: []string{"10.0.0.0/8"},
			drop:  []Flow{tcp("169.254.169.254"), tcp("fd00:ec2::254"), tcp("fe80::1")},
		},
		{
			name: "a zone does not matter", mode: ModeDenylist,
			deny: []string{"fe80::/10"},
			drop: []Flow{tcp("fe80::1%eth0")},
		},
		{
			name: "no address is closed", mode: ModeDenylist,
			drop: []Flow{{Protocol: TCP, Port: 80}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := &Policy{Mode: tt.mode, Allow: rules(t, tt.allow...), Deny: rules(t, tt.deny...)}
			c, err := p.Compile()
			if err != nil {
				t.Fatal(err)
			}
			check := func(flows []Flow, want Action) {
				for _, f := range flows {
					if d := p.Decide(f, 0); d.Action != want {
						t.Errorf("%v: %v (%s), want %v", f, d.Action, d.Reason, want)
					}
					checkAgreement(t, p, nil, c, f, 0)
				}
			}
			check(tt.pass, Allow)
			check(tt.drop, Deny)
		})
	}
}

func TestDecideExpiry(t *testing.T) {
	p := &Policy{Mode: ModeAllowlist, Allow: rules(t, "10.0.0.0/8", "10.0.0.1", "192.0.2.1"), Deny: rules(t, "10.0.0.2")}
	p.Allow[1].Deadline, p.Allow[2].Deadline, p.Deny[0].Deadline = 100, 100, 100
	c, err := p.Compile()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		to   string
		boot time.Duration
		want Action
		rule *Rule
	}{
		{"192.0.2.1", 99, Allow, &p.Allow[2]},
		{"192.0.2.1", 100, Deny, nil},
		{"10.0.0.1", 99, Allow, &p.Allow[1]},
		{"10.0.0.1", 100, Allow, &p.Allow[0]}, // does not hide what covers it
		{"10.0.0.2", 99, Deny, &p.Deny[0]},
		{"10.0.0.2", 100, Allow, &p.Allow[0]},
	} {
		if d := p.Decide(tcp(tt.to), tt.boot); d.Action != tt.want || d.Rule != tt.rule {
			t.Errorf("%s at %d: %+v, want %v by %v", tt.to, tt.boot, d, tt.want, tt.rule)
		}
		checkAgreement(t, p, nil, c, tcp(tt.to), tt.boot)
	}
}

func TestDecisionReason(t *testing.T) {
	p := &Policy{Mode: ModeAllowlist, Allow: rules(t, "10.0.0.0/8", "[64:ff9b::/96]:443/tcp", "192.0.2.1:443"), Deny: rules(t, "10.9.0.0/16")}
	for _, tt := range []struct {
		flow  Flow
		list  Action
		index int
		want  string
	}{
		{tcp("10.0.0.1"), Allow, 0, "allow rule 1: 10.0.0.0/8"},
		{tcp("10.9.0.1"), Deny, 0, "deny rule 1: 10.9.0.0/16"},
		{tcp("192.0.2.1:443"), Allow, 2, "allow rule 3: 192.0.2.1/32 ports 443"},
		{tcp("192.0.2.9:443"), Deny, 0, "mode allowlist, no rule matches 192.0.2.9 port 443/tcp"},
		{icmp("192.0.2.1"), Deny, 0, "mode allowlist, no rule matches 192.0.2.1 protocol 1"},
		{tcp("[64:ff9b::10.0.0.1]:443"), Allow, 1, "allow rule 2: 64:ff9b::/96 ports 443/tcp"},
		{tcp("[64:ff9b::10.9.0.1]:443"), Deny, 0, "embedded IPv4 address 10.9.0.1: deny rule 1: 10.9.0.0/16"},
	} {
		d := p.Decide(tt.flow, 0)
		if d.Reason != tt.want || d.List != tt.list || d.Index != tt.index {
			t.Errorf("%v: %+v, want %v rule %d, %q", tt.flow, d, tt.list, tt.index+1, tt.want)
		}
	}
	if d := BlockAll().Decide(tcp("10.0.0.1"), 0); d.Reason != "mode block-all" {
		t.Errorf("block-all: %+v", d)
	}
}

func TestRuleAt(t *testing.T) {
	p := &Policy{Allow: rules(t, "10.0.0.0/8"), Deny: rules(t, "10.1.0.0/16", "10.2.0.0/16")}
	for n, want := range []string{"", "allow 0 10.0.0.0/8", "deny 0 10.1.0.0/16", "deny 1 10.2.0.0/16", ""} {
		rule, list, index := p.RuleAt(uint32(n))
		got := ""
		if rule != nil {
			got = strings.Join([]string{list.String(), string(rune('0' + index)), rule.String()}, " ")
		}
		if got != want {
			t.Errorf("RuleAt(%d) = %q, want %q", n, got, want)
		}
	}
}
