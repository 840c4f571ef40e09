// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestCompileSettings(t *testing.T) {
	rule, source, sip := rules(t, "10.0.0.0/8"), []Source{{MAC: [6]byte{2}}}, []Ports{{5060, 5060, UDP}}
	for _, tt := range []struct {
		policy Policy
		want   Compiled // without its table
		table  bool
	}{
		{Policy{}, Compiled{Loopback: LoopbackDeny}, false},
		{Policy{Mode: ModeBlockAll, Allow: rule, Loopback: LoopbackAllow}, Compiled{Loopback: LoopbackDeny}, false},
		{Policy{Mode: ModeDisabled, Deny: rule}, Compiled{Mode: ModeDisabled, Loopback: LoopbackAllow}, false},
		{Policy{Audit: true, Source: source, RepliesUDP: sip}, Compiled{Audit: true, Loopback: LoopbackDeny}, true},
		{Policy{Mode: ModeDisabled, Audit: true, Source: source, RepliesUDP: sip}, Compiled{Mode: ModeDisabled, Loopback: LoopbackAllow}, false},
		{Policy{Mode: 77, Audit: true}, Compiled{Loopback: LoopbackDeny}, false},
		{Policy{Mode: ModeAllowlist}, Compiled{Mode: ModeAllowlist, Replies: true}, false},
		{Policy{Mode: ModeAllowlist, Audit: true, Source: source}, Compiled{Mode: ModeAllowlist, Audit: true, Replies: true}, true},
		{Policy{Mode: ModeDenylist, RepliesUDP: sip}, Compiled{Mode: ModeDenylist, Replies: true, RepliesUDP: true}, true},
		{Policy{Mode: ModeDenylist, RepliesUDP: sip, Replies: RepliesDeny}, Compiled{Mode: ModeDenylist}, false},
		{Policy{Mode: ModeAllowlist, Allow: rule, Replies: RepliesDeny}, Compiled{Mode: ModeAllowlist}, true},
		{Policy{Mode: ModeDenylist, Deny: rule, Loopback: LoopbackAllow}, Compiled{Mode: ModeDenylist, Replies: true, Loopback: LoopbackAllow}, true},
	} {
		c, err := tt.policy.Compile()
		if err != nil {
			t.Fatal(err)
		}
		if (c.Table != nil) != tt.table {
			t.Errorf("%+v: table %v", tt.policy, c.Table)
		}
		if c.Names == nil {
			t.Errorf("%+v: no names", tt.policy)
		}
		c.Table, c.Names, c.policy = nil, nil, nil
		if *c != tt.want {
			t.Errorf("%+v: %+v, want %+v", tt.policy, *c, tt.want)
		}
	}
}

// TestCompileTable pins the layout that the kernel walks.
func TestCompileTable(t *testing.T) {
	p := &Policy{
		Mode:  ModeAllowlist,
		Allow: rules(t, "10.0.0.0/8", "10.1.0.0/16:443", "10.1.2.0/24:80/tcp", "::/0"), // rules 1 to 4
		Deny:  rules(t, "10.1.0.0/16:25/tcp", "10.1.3.0/24"),                           // rules 5 and 6
	}
	p.Deny[1].Deadline = 7
	c, err := p.Compile()
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix
	want := &Table{
		Entries: []Entry{
			{prefix("::/0"), Clause{Verdict: VerdictAllow, Rule: 4}},
			{prefix("::ffff:0:0/96"), Clause{Verdict: VerdictNone}},
			{prefix("::ffff:10.0.0.0/104"), Clause{Verdict: VerdictAllow, Rule: 1}},
			{prefix("::ffff:10.1.0.0/112"), Clause{First: 25, Last: 25, Match: MatchTCP, Verdict: VerdictDeny, Rule: 5, Next: 2}},
			{prefix("::ffff:10.1.2.0/120"), Clause{First: 80, Last: 80, Match: MatchTCP, Verdict: VerdictAllow, Rule: 3, Next: 3}},
			{prefix("::ffff:10.1.3.0/120"), Clause{Deadline: 7, Verdict: VerdictDeny, Rule: 6, Next: 3}},
		},
		Clauses: []Clause{
			{},
			{Verdict: VerdictAllow, Rule: 1}, // 10.0.0.0/8, for those that it covers
			{First: 443, Last: 443, Match: MatchTCPUDP, Verdict: VerdictAllow, Rule: 2, Next: 1},
			{First: 25, Last: 25, Match: MatchTCP, Verdict: VerdictDeny, Rule: 5, Next: 2}, // 10.1.0.0/16, shared
		},
	}
	if !reflect.DeepEqual(c.Table, want) {
		t.Errorf("got  %+v\nwant %+v", c.Table, want)
	}
	checkTable(t, c.Table)
}

func TestChainLimit(t *testing.T) {
	// Nested prefixes of one port each, under 0.0.0.0/0.
	nested := func(n int) *Policy {
		p := &Policy{Mode: ModeDenylist}
		for i := range n {
			r := rules(t, "2001:db8::")[0]
			r.Prefix = netip.PrefixFrom(r.Prefix.Addr(), 128-i).Masked()
			r.Ports = []Ports{{uint16(i + 1), uint16(i + 1), TCP}}
			p.Deny = append(p.Deny, r)
		}
		return p
	}
	if _, err := nested(96).Compile(); err != nil {
		t.Error(err)
	}
	p := nested(96)
	p.Deny[95].Ports = nil
	for i := range 33 {
		p.Allow = append(p.Allow, Rule{Prefix: p.Deny[0].Prefix, Ports: []Ports{{uint16(i + 1), uint16(i + 1), UDP}}})
	}
	_, err := p.Compile()
	var invalid *InvalidError
	if !errors.As(err, &invalid) || invalid.Field != "deny[0]" || !strings.Contains(err.Error(), "129 port ranges and lifetimes apply to prefix 2001:db8::/128") {
		t.Errorf("chain of 129: %v", err)
	}
	p.Allow = p.Allow[1:]
	c, err := p.Compile()
	if err != nil {
		t.Fatalf("chain of 128: %v", err)
	}
	checkTable(t, c.Table)
	for port := range uint16(100) {
		checkAgreement(t, p, nil, c, Flow{Addr: p.Deny[0].Prefix.Addr(), Protocol: TCP, Port: port}, 0)
	}
	// A rule for everything ends the chain for those below.
	p.Deny = append(p.Deny, rules(t, "2001:db8::/127")...)
	if c, err = p.Compile(); err != nil || len(c.Table.Clauses) > 250 {
		t.Errorf("cut chain: %v", err)
	}
}

func TestHash(t *testing.T) {
	compile := func(allow ...string) *Table {
		c, err := (&Policy{Mode: ModeAllowlist, Allow: rules(t, allow...)}).Compile()
		if err != nil {
			t.Fatal(err)
		}
		return c.Table
	}
	seen := map[[32]byte]string{}
	for _, allow := range []string{"", "10.0.0.0/8", "10.0.0.0/9", "::a00:0/104", "10.0.0.0/8:1", "10.0.0.0/8:1/tcp", "10.0.0.0/8:1-2", "10.0.0.0/8 10.1.0.0/16"} {
		h := compile(strings.Fields(allow)...).Hash()
		if other, ok := seen[h]; ok {
			t.Errorf("%q and %q have one hash", allow, other)
		}
		seen[h] = allow
		if compile(strings.Fields(allow)...).Hash() != h {
			t.Errorf("%q has two hashes", allow)
		}
	}
	table := compile("10.0.0.0/8")
	before := table.Hash()
	for name, change := range map[string]func(c *Clause){
		"deadline": func(c *Clause) { c.Deadline++ }, "first": func(c *Clause) { c.First++ }, "last": func(c *Clause) { c.Last++ },
		"match": func(c *Clause) { c.Match++ }, "verdict": func(c *Clause) { c.Verdict++ }, "next": func(c *Clause) { c.Next++ }, "rule": func(c *Clause) { c.Rule++ },
		"guard": func(c *Clause) { c.Guard = !c.Guard },
	} {
		saved := table.Entries[1].Clause
		change(&table.Entries[1].Clause)
		if table.Hash() == before {
			t.Errorf("another %s has the same hash", name)
		}
		table.Entries[1].Clause = saved
	}
	if n := reflect.TypeFor[Clause]().NumField(); n != 8 {
		t.Errorf("Clause has %d fields, and Hash covers 8", n)
	}
	for name, change := range map[string]func(*Table){
		"prefix":     func(t *Table) { t.Sources = []Source{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}} },
		"ipv6":       func(t *Table) { t.Sources = []Source{{Prefix: netip.MustParsePrefix("::a00:0/8")}} },
		"mac":        func(t *Table) { t.Sources = []Source{{MAC: [6]byte{2}}} },
		"two":        func(t *Table) { t.Sources = []Source{{MAC: [6]byte{2}}, {MAC: [6]byte{4}}} },
		"reply port": func(t *Table) { t.Clauses = []Clause{{First: 1, Last: 2, Match: MatchUDP, Verdict: VerdictAllow}} },
	} {
		changed := *table
		change(&changed)
		h := changed.Hash()
		if other, ok := seen[h]; ok {
			t.Errorf("%s and %q have one hash", name, other)
		}
		seen[h] = name
	}
	if n := reflect.TypeFor[Table]().NumField(); n != 3 {
		t.Errorf("Table has %d fields, and Hash covers 3", n)
	}
}

func TestValidate(t *testing.T) {
	p := specPolicy()
	if err := p.Validate(Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		change func(*Policy)
		field  string
		want   string
	}{
		{func(p *Policy) { p.Mode = 9 }, "mode", "mode: unknown (one of block-all"},
		{func(p *Policy) { p.Replies = 9 }, "replies", "replies: unknown"},
		{func(p *Policy) { p.Loopback = 9 }, "loopback", "loopback: unknown"},
		{func(p *Policy) { p.DNS.Mode = 9 }, "dns.mode", "dns.mode: unknown"},
		{func(p *Policy) { p.DNS.RefuseWith = 9 }, "dns.refuse_with", "dns.refuse_with: unknown"},
		{func(p *Policy) { p.Allow[2].Prefix = netip.Prefix{} }, "allow[2]", "allow rule 3: prefix is missing"},
		{func(p *Policy) { p.Allow[2].Prefix = netip.MustParsePrefix("10.0.0.1/8") }, "allow[2]", "did you mean 10.0.0.0/8?"},
		{func(p *Policy) { p.Deny[0].Prefix = netip.MustParsePrefix("::ffff:10.0.0.0/104") }, "deny[0]", "deny rule 1: prefix ::ffff:10.0.0.0/104 is IPv4-mapped"},
		{func(p *Policy) { p.Deny[0].TTL = -1 }, "deny[0]", "ttl -1ns is negative"},
		{func(p *Policy) { p.Deny[0].Deadline = -1 }, "deny[0]", "deadline -1ns is negative"},
		{func(p *Policy) { p.Deny[0].Ports = []Ports{{}} }, "deny[0]", "ports 0: 0 is not a port"},
		{func(p *Policy) { p.Deny[0].Ports = []Ports{{1, 2, 132}} }, "deny[0]", "protocol 132 has no ports here"},
		{func(p *Policy) { p.Deny[0].Ports = make([]Ports, 65) }, "deny[0]", "65 port ranges, at most 64"},
		{func(p *Policy) { p.DNS.Allow[1].Domain = "A.example" }, "dns.allow[1]", `dns allow rule 2: domain "A.example" is not in canonical form a.example`},
		{func(p *Policy) { p.DNS.Allow[1].Domain = "" }, "dns.allow[1]", "empty name"},
		{func(p *Policy) { p.DNS.Allow[6].Force = false }, "dns.allow[6]", "public suffix"},
		{func(p *Policy) { p.DNS.Deny[0].Ports = []Ports{{1, 1, TCP}} }, "dns.deny[0]", "a denied name has no addresses"},
		{func(p *Policy) { p.DNS.Upstreams[1] = netip.AddrPort{} }, "dns.upstreams[1]", "dns upstreams entry 2"},
		{func(p *Policy) { p.DNS.Upstreams = make([]netip.AddrPort, 17) }, "dns.upstreams", "17 entries, at most 16"},
		{func(p *Policy) { p.DNS.Forward[0].Original = true }, "dns.forward[0]", "to is a list of servers or original"},
		{func(p *Policy) { p.DNS.Forward[0].Zone = "*.corp" }, "dns.forward[0]", "a wildcard stands alone"},
		{func(p *Policy) { p.Source[1].MAC = [6]byte{1} }, "source[1]", "not the MAC address of one device"},
		{func(p *Policy) { p.Source[0].MAC = [6]byte{2} }, "source[0]", "not both"},
		{func(p *Policy) { p.RepliesUDP[0].Protocol = TCP }, "replies_udp[0]", "TCP is answered anyway"},
	} {
		p := specPolicy()
		tt.change(p)
		err := p.Validate(Limits{})
		var invalid *InvalidError
		if !errors.As(err, &invalid) || invalid.Field != tt.field || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.field, err, tt.want)
		}
	}
	if err := p.Validate(Limits{Rules: 15}); err != nil {
		t.Errorf("15 rules of 15: %v", err)
	}
	if err := p.Validate(Limits{Rules: 14}); err == nil || err.Error() != "rules: 15 rules, at most 14 (limits.rules)" {
		t.Errorf("15 rules of 14: %v", err)
	}
}

// manyRules is a policy of n rules that cover each other here and there.
func manyRules(n int) *Policy {
	p := &Policy{Mode: ModeAllowlist}
	for i := range n {
		// A multiplicative walk: every address once, in no order.
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(i)*2654435761)
		r := Rule{Prefix: netip.PrefixFrom(netip.AddrFrom4(b), 16+i%17).Masked()}
		if i%4 == 0 {
			r.Ports = []Ports{{443, 443, TCP}, {8000, 8100, AnyProtocol}}
		}
		if i%8 == 1 {
			p.Deny = append(p.Deny, r)
		} else {
			p.Allow = append(p.Allow, r)
		}
	}
	return p
}

func TestCompileMany(t *testing.T) {
	p := manyRules(3000)
	c, err := p.Compile()
	if err != nil {
		t.Fatal(err)
	}
	checkTable(t, c.Table)
	for _, list := range []Action{Allow, Deny} {
		for _, r := range p.list(list)[:300] {
			checkAgreement(t, p, nil, c, Flow{Addr: r.Prefix.Addr(), Protocol: TCP, Port: 443}, 0)
			checkAgreement(t, p, nil, c, Flow{Addr: r.Prefix.Addr(), Protocol: UDP, Port: 53}, 0)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	p := manyRules(100_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Validate(Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := manyRules(n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Compile(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHash(b *testing.B) {
	c, err := manyRules(100_000).Compile()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Table.Hash()
	}
}

func BenchmarkParseFile(b *testing.B) {
	text := "mode: allowlist\nallow:\n"
	p := manyRules(100_000)
	var sb strings.Builder
	sb.WriteString(text)
	for i := range p.Allow {
		fmt.Fprintf(&sb, "- %s\n", p.Allow[i].Prefix)
	}
	data := []byte(sb.String())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseFile("f.yaml", data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	var allow []DomainRule
	for i := range 1000 {
		allow = append(allow, DomainRule{Domain: fmt.Sprintf("host%d.example", i), IncludeSubdomains: true})
	}
	m := NewMatcher(allow, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Match("a.b.c.host77.example."); err != nil {
			b.Fatal(err)
		}
	}
}
