// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestGuard(t *testing.T) {
	modes := func(m ...Mode) []Mode { return m }
	every := modes(ModeBlockAll, ModeAllowlist, ModeDenylist, ModeDisabled, 77)
	tests := []struct {
		name        string
		allow, deny []string // of the guard
		modes       []Mode
		policyAllow []string
		policyDeny  []string
		pass, drop  []Flow
	}{
		{
			name: "a denial stands in every mode", modes: every, deny: []string{"169.254.0.0/16", "fd00:ec2::254"},
			policyAllow: []string{"169.254.169.254", "fd00:ec2::254", "0.0.0.0/0", "::/0"},
			drop:        []Flow{tcp("169.254.169.254"), icmp("169.254.0.1"), udp("fd00:ec2::254"), fragment(tcp("169.254.169.254")), tcp("::ffff:169.254.169.254")},
		},
		{
			name: "an allowance stands in every mode", modes: every, allow: []string{"10.0.0.53:53", "2001:db8::/32"},
			policyDeny: []string{"10.0.0.53", "10.0.0.53:53", "2001:db8::1", "0.0.0.0/0"},
			pass:       []Flow{udp("10.0.0.53:53"), tcp("10.0.0.53:53"), tcp("2001:db8::1"), icmp("2001:db8::2")},
		},
		{
			name: "what it is silent about the policy decides", modes: modes(ModeAllowlist), allow: []string{"10.0.0.0/8:443"}, deny: []string{"10.0.0.0/8:25"},
			policyAllow: []string{"10.1.0.0/16", "10.2.0.0/16:443"},
			pass:        []Flow{tcp("10.3.0.1:443"), tcp("10.1.0.1:80"), icmp("10.1.0.1")},
			drop:        []Flow{tcp("10.3.0.1:80"), tcp("10.1.0.1:25"), tcp("10.2.0.1:80"), fragment(tcp("10.3.0.1:443"))},
		},
		{
			name: "a short prefix of the guard outranks a long one of the policy", modes: modes(ModeAllowlist, ModeDenylist), deny: []string{"10.0.0.0/8"},
			policyAllow: []string{"10.1.0.0/16", "10.1.2.3", "10.1.2.3:443"},
			drop:        []Flow{tcp("10.1.2.3:443"), tcp("10.1.0.1"), icmp("10.1.2.3")},
		},
		{
			name: "among its own the longest wins, and deny on a tie", modes: every,
			allow: []string{"10.1.0.0/16", "10.2.0.0/16"}, deny: []string{"10.0.0.0/8", "10.1.2.0/24", "10.2.0.0/16:25"},
			policyAllow: []string{"10.1.2.3", "10.3.0.0/16"}, policyDeny: []string{"10.1.0.1"},
			pass: []Flow{tcp("10.1.0.1"), tcp("10.2.0.1:80")},
			drop: []Flow{tcp("10.1.2.3"), tcp("10.2.0.1:25"), tcp("10.3.0.1")},
		},
		{
			name: "::/0 is not IPv4", modes: modes(ModeDenylist, ModeDisabled), deny: []string{"::/0"},
			pass: []Flow{tcp("10.0.0.1"), tcp("::ffff:10.0.0.1")},
			drop: []Flow{tcp("2001:db8::1"), tcp("64:ff9b::10.0.0.1")},
		},
		{
			name: "a denied embedded address", modes: every, deny: []string{"169.254.169.254"},
			policyAllow: []string{"::/0", "169.254.169.254"},
			drop:        []Flow{tcp("64:ff9b::169.254.169.254"), tcp("2002:a9fe:a9fe::"), tcp("::169.254.169.254")},
		},
		{
			name: "an allowed outer address needs the embedded one all the same", modes: modes(ModeAllowlist), allow: []string{"64:ff9b::/96"},
			policyAllow: []string{"10.0.0.0/8"},
			pass:        []Flow{tcp("64:ff9b::10.0.0.1")},
			drop:        []Flow{tcp("64:ff9b::192.0.2.1")},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := &Guard{Allow: rules(t, tt.allow...), Deny: rules(t, tt.deny...)}
			if err := g.Validate(); err != nil {
				t.Fatal(err)
			}
			for _, mode := range tt.modes {
				p := &Policy{Mode: mode, Allow: rules(t, tt.policyAllow...), Deny: rules(t, tt.policyDeny...)}
				c, err := p.CompileWith(g)
				if err != nil {
					t.Fatal(err)
				}
				checkTable(t, c.Table)
				check := func(flows []Flow, want Action) {
					for _, f := range flows {
						if d := p.DecideWith(g, f, 0); d.Action != want {
							t.Errorf("%v, %v: %v (%s), want %v", mode, f, d.Action, d.Reason, want)
						}
						checkAgreement(t, p, g, c, f, 0)
					}
				}
				check(tt.pass, Allow)
				check(tt.drop, Deny)
			}
		})
	}
}

// TestGuardDeniesFirst: in audit only the guard's denials are denials, so of two
// reasons to deny the guard's is told.
func TestGuardDeniesFirst(t *testing.T) {
	p := &Policy{Mode: ModeAllowlist, Audit: true}
	g := &Guard{Deny: rules(t, "169.254.0.0/16")}
	d := p.DecideWith(g, tcp("64:ff9b::169.254.169.254"), 0)
	if want := "embedded IPv4 address 169.254.169.254: guard deny rule 1: 169.254.0.0/16"; !d.Guard || d.Action != Deny || d.Reason != want {
		t.Errorf("%+v, want %q", d, want)
	}
}

// TestGuardTable pins the layout that the kernel walks.
func TestGuardTable(t *testing.T) {
	g := &Guard{
		Allow: rules(t, "10.1.0.0/16:53"),                                        // rule 1
		Deny:  rules(t, "10.0.0.0/8:25/tcp", "192.0.2.0/24", "192.0.2.9:80/tcp"), // rules 2 to 4
	}
	p := &Policy{
		Mode:       ModeAllowlist,
		Allow:      rules(t, "10.1.2.0/24", "10.0.0.0/8:443/tcp", "192.0.2.128/25"), // rules 1 to 3
		RepliesUDP: []Ports{{5060, 5061, UDP}, {7000, 7000, AnyProtocol}},
		Source:     []Source{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
	}
	c, err := p.CompileWith(g)
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix
	smtp := Clause{First: 25, Last: 25, Match: MatchTCP, Verdict: VerdictDeny, Rule: 2, Guard: true}
	dns := Clause{First: 53, Last: 53, Match: MatchTCPUDP, Verdict: VerdictAllow, Rule: 1, Guard: true}
	then := func(c Clause, next uint32) Clause { c.Next = next; return c }
	want := &Table{
		Entries: []Entry{
			{prefix("::ffff:0:0/96"), Clause{Verdict: VerdictNone}},
			{prefix("::ffff:10.0.0.0/104"), then(smtp, 2)},
			{prefix("::ffff:10.1.0.0/112"), then(dns, 3)},
			{prefix("::ffff:10.1.2.0/120"), then(dns, 5)},
			{prefix("::ffff:192.0.2.0/120"), Clause{Verdict: VerdictDeny, Rule: 3, Guard: true}},
			{prefix("::ffff:192.0.2.9/128"), Clause{First: 80, Last: 80, Match: MatchTCP, Verdict: VerdictDeny, Rule: 4, Guard: true, Next: 6}},
			// 192.0.2.128/25 is wholly the guard's.
		},
		Clauses: []Clause{
			{First: 5060, Last: 5061, Match: MatchUDP, Verdict: VerdictAllow, Next: 1},
			{First: 7000, Last: 7000, Match: MatchUDP, Verdict: VerdictAllow},
			{First: 443, Last: 443, Match: MatchTCP, Verdict: VerdictAllow, Rule: 2}, // 10.0.0.0/8, for all below
			then(smtp, 2), // the guard of 10.1.0.0/16
			{Verdict: VerdictAllow, Rule: 1},
			then(smtp, 4), // the guard of 10.1.2.0/24
			{Verdict: VerdictDeny, Rule: 3, Guard: true},
		},
		Sources: p.Source,
	}
	if !reflect.DeepEqual(c.Table, want) {
		t.Errorf("got  %+v\nwant %+v", c.Table, want)
	}
	checkTable(t, c.Table)
	for _, mode := range []Mode{ModeDisabled, ModeBlockAll} {
		p := &Policy{Mode: mode, Allow: p.Allow, RepliesUDP: p.RepliesUDP}
		c, err := p.CompileWith(g)
		alone, aloneErr := BlockAll().CompileWith(g)
		if err != nil || aloneErr != nil || !reflect.DeepEqual(c.Table, alone.Table) || c.Table.Hash() != alone.Table.Hash() {
			t.Errorf("%v: the table holds more than the guard: %+v, %v", mode, c.Table, err)
		}
	}
}

func TestRuleText(t *testing.T) {
	p := &Policy{Mode: ModeAllowlist, Allow: rules(t, "10.0.0.0/8:443"), Deny: rules(t, "10.0.9.0/24")}
	c, err := p.CompileWith(&Guard{Deny: rules(t, "169.254.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := p.Compile()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		compiled *Compiled
		rule     uint32
		guard    bool
		want     string
	}{
		{c, 1, false, "allow 10.0.0.0/8 ports 443"},
		{c, 2, false, "deny 10.0.9.0/24"},
		{c, 1, true, "guard deny 169.254.0.0/16"},
		{c, 0, false, ""}, {c, 3, false, ""}, {c, 0, true, ""}, {c, 2, true, ""}, {plain, 1, true, ""},
	} {
		if got := tt.compiled.RuleText(tt.rule, tt.guard); got != tt.want {
			t.Errorf("RuleText(%d, %t) = %q, want %q", tt.rule, tt.guard, got, tt.want)
		}
	}
}

func TestGuardValidate(t *testing.T) {
	many := func(n int, f func(i int) Rule) (r []Rule) {
		for i := range n {
			r = append(r, f(i))
		}
		return r
	}
	port := func(i int) Rule {
		return Rule{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Ports: []Ports{{uint16(i + 1), uint16(i + 1), TCP}}}
	}
	address := func(i int) Rule {
		return Rule{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}
	}
	for _, g := range []*Guard{nil, {}, {Deny: many(32, port)}, {Allow: many(1000, address), Deny: many(24, address)}} {
		if err := g.Validate(); err != nil {
			t.Errorf("%v: %v", g, err)
		}
	}
	for _, tt := range []struct {
		guard Guard
		field string
		want  string
	}{
		{Guard{Deny: []Rule{{}}}, "guard.deny[0]", "guard deny rule 1: prefix is missing"},
		{Guard{Allow: []Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), TTL: 1}}}, "guard.allow[0]", "guard allow rule 1: 10.0.0.0/8: a guard rule has no lifetime"},
		{Guard{Allow: []Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Deadline: 1}}}, "guard.allow[0]", "no lifetime"},
		{Guard{Deny: many(1025, address)}, "guard", "guard: 1025 rules, at most 1024"},
		{Guard{Allow: []Rule{port(40)}, Deny: many(32, port)}, "guard.deny[0]", "33 port ranges and lifetimes apply to prefix 10.0.0.0/8 and those that cover it, at most 32"},
	} {
		err := tt.guard.Validate()
		var invalid *InvalidError
		if !errors.As(err, &invalid) || invalid.Field != tt.field || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %s: %q", err, tt.field, tt.want)
		}
	}
}

// TestGuardChainLimit: when policy and guard together are too much for the
// kernel, the policy is refused, by a rule of its own.
func TestGuardChainLimit(t *testing.T) {
	ports := func(n int) []Ports {
		var p []Ports
		for i := range n {
			p = append(p, Ports{uint16(2*i + 1), uint16(2*i + 1), TCP})
		}
		return p
	}
	prefix := netip.MustParsePrefix("10.0.0.0/8")
	p := &Policy{Mode: ModeDenylist, Deny: []Rule{{Prefix: prefix, Ports: ports(64)}, {Prefix: prefix, Ports: ports(63)}}}
	for _, at := range []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16"} {
		g := &Guard{Deny: []Rule{{Prefix: netip.MustParsePrefix(at), Ports: ports(2)}}}
		_, err := p.CompileWith(g)
		var invalid *InvalidError
		if !errors.As(err, &invalid) || invalid.Field != "deny[0]" || !strings.Contains(err.Error(), "129 port ranges") {
			t.Errorf("guard of %s: %v", at, err)
		}
		g.Deny[0].Ports = ports(1)
		c, err := p.CompileWith(g)
		if err != nil {
			t.Errorf("guard of %s: %v", at, err)
			continue
		}
		checkTable(t, c.Table)
	}
}

func TestGuardText(t *testing.T) {
	const text = "allow:\n    - cidr: 10.0.0.53/32\n      ports: [\"53\"]\ndeny:\n    - 169.254.0.0/16\n"
	var g Guard
	if err := yaml.Unmarshal([]byte(text), &g); err != nil {
		t.Fatal(err)
	}
	if want := "deny 169.254.0.0/16, allow 10.0.0.53/32 ports 53"; g.String() != want {
		t.Errorf("String() = %q, want %q", g.String(), want)
	}
	if b, err := yaml.Marshal(g); err != nil || string(b) != text {
		t.Errorf("written as %q, %v, want %q", b, err, text)
	}
	b, err := json.Marshal(g)
	const want = `{"allow_cidrs":[{"cidr":"10.0.0.53/32","ports":["53"]}],"deny_cidrs":[{"cidr":"169.254.0.0/16"}]}`
	if err != nil || string(b) != want {
		t.Errorf("JSON %s, %v, want %s", b, err, want)
	}
	var again Guard
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(g, again) {
		t.Errorf("JSON %s read as %+v, %v", b, again, err)
	}
	for text, want := range map[string]string{
		"deny: [pypi.org]":                    "deny rule 1: pypi.org is a name; a guard holds addresses",
		"deny: ['set:a']":                     `set "a": not defined`,
		"deny: [10.0.0.1/8]":                  "did you mean 10.0.0.0/8?",
		"deny: [{cidr: 10.0.0.0/8, ttl: 1m}]": "no lifetime",
		"deny: [{domain: pypi.org}]":          "pypi.org is a name",
		"denied: []":                          `unknown key "denied"`,
		"[]":                                  "expected a mapping",
		"allow: 10.0.0.0/8":                   "expected a list",
		"allow: [10.0.0.0/8]\nallow: [192.0.2.0/24]": "comes twice",
	} {
		if err := yaml.Unmarshal([]byte(text), new(Guard)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestGuardCovers(t *testing.T) {
	g := &Guard{Allow: rules(t, "10.0.0.53:53"), Deny: rules(t, "10.9.0.0/16")}
	c, err := (&Policy{Mode: ModeAllowlist, Allow: rules(t, "10.9.0.0/24", "192.168.0.0/16")}).CompileWith(g)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{"10.0.0.53": true, "10.9.0.1": false, "192.168.0.1": true, "10.0.0.54": false} {
		if got := c.Names.Covers(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Covers(%s) = %t", addr, got)
		}
	}
}
