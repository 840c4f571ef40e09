// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// FuzzRule: what Parse accepts is canonical, valid, and says itself again.
func FuzzRule(f *testing.F) {
	for _, s := range []string{
		"10.0.0.0/8", "10.0.0.0/8:443", "[2001:db8::/32]:443/udp", "::ffff:10.0.0.1", "::ffff:0:0/96", "::/0",
		"fe80::1%eth0", "10.0.0.1/8", "pypi.org:443", "*.pypi.org", "bücher.example", "*", "[::1]", "1:2:3", "a:b",
		"2001:db8::/32:443", "0.0.0.0/0:0-65535/tcp", "10.0.0.0/08", "::ffff:1.2.3.4/8", "［::1］:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rule, domain, err := Parse(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("Parse(%q): error of several lines: %v", s, err)
			}
			return
		}
		if (rule == nil) == (domain == nil) {
			t.Fatalf("Parse(%q) = %v, %v: want exactly one", s, rule, domain)
		}
		if domain != nil {
			domain.Force = true
			if err := domain.check(Allow); err != nil {
				t.Errorf("Parse(%q) = %v: %v", s, domain, err)
			}
			return
		}
		if err := rule.check(); err != nil {
			t.Errorf("Parse(%q) = %v: %v", s, rule, err)
		}
		again, _, err := ParsePrefix(rule.Prefix.String(), RefuseHostBits)
		if err != nil || again != rule.Prefix {
			t.Errorf("ParsePrefix(%v) = %v, %v", rule.Prefix, again, err)
		}
		for _, p := range rule.Ports {
			if again, err := ParsePorts(p.String()); err != nil || again != p {
				t.Errorf("ParsePorts(%v) = %v, %v", p, again, err)
			}
		}
	})
}

// FuzzPrefix: masking only ever clears host bits.
func FuzzPrefix(f *testing.F) {
	for _, s := range []string{"10.0.0.1/8", "2001:db8::1/32", "::ffff:10.0.0.1/104", "::ffff:10.0.0.1/8", "1.2.3.4", "::/0", "/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		strict, _, strictErr := ParsePrefix(s, RefuseHostBits)
		masked, warning, err := ParsePrefix(s, MaskHostBits)
		if err != nil {
			if strictErr == nil {
				t.Errorf("ParsePrefix(%q): strict accepts what is refused otherwise: %v", s, err)
			}
			return
		}
		if (strictErr == nil) != (warning == "") || strictErr == nil && strict != masked {
			t.Errorf("ParsePrefix(%q): %v, %v strictly, %v, %q masked", s, strict, strictErr, masked, warning)
		}
		if err := checkPrefix(masked); err != nil {
			t.Errorf("ParsePrefix(%q) = %v: %v", s, masked, err)
		}
	})
}

// FuzzDomain: canonical forms are stable, and the matcher agrees with asking
// every rule.
func FuzzDomain(f *testing.F) {
	f.Add("pypi.org", "PyPI.org.", "*.org", "files.pypi.org")
	f.Add("*.pypi.org", "pypi.org", "*", "a.b.pypi.org")
	f.Add("bücher.example", "XN--BCHER-KVA.example", "_dmarc.x", ".")
	f.Add("a。b", "ａ.b", "*.a.b", "x.a.b")
	f.Add("a..b", "-a", "a\\.b", "a b")
	f.Fuzz(func(t *testing.T, one, two, three, name string) {
		var allow, deny []DomainRule
		for i, s := range []string{one, two, three} {
			d, err := ParseDomain(s)
			if err != nil {
				continue
			}
			if again, err := ParseDomain(d); err != nil || again != d {
				t.Fatalf("ParseDomain(%q) = %q, and of that %q, %v", s, d, again, err)
			}
			r := DomainRule{Domain: d, IncludeSubdomains: i != 1}
			if i == 2 {
				deny = append(deny, r)
			} else {
				allow = append(allow, r)
			}
		}
		got, err := NewMatcher(allow, deny).Match(name)
		if err != nil {
			return
		}
		want := matchByRule(allow, deny, got.Name)
		if got.List != want.List || (len(got.Rules) > 0) != (len(want.Rules) > 0) ||
			len(got.Rules) > 0 && got.Rules[0] != want.Rules[0] {
			t.Errorf("Match(%q) with allow %v, deny %v: %+v, want %+v", name, allow, deny, got, want)
		}
		for _, form := range []string{strings.ToUpper(got.Name), got.Name + "."} {
			again, err := NewMatcher(allow, deny).Match(form)
			if err != nil || !reflect.DeepEqual(got, again) {
				t.Errorf("Match(%q) = %+v, %v; Match(%q) = %+v", form, again, err, name, got)
			}
		}
	})
}

// matchByRule asks every rule: the reference for Matcher.
func matchByRule(allow, deny []DomainRule, name string) NameMatch {
	best, m := -1, NameMatch{Name: name}
	for _, list := range []Action{Deny, Allow} {
		rules := deny
		if list == Allow {
			rules = allow
		}
		for i := range rules {
			if s := specificity(&rules[i], name); s > best {
				best, m.List, m.Rules = s, list, []*DomainRule{&rules[i]}
			}
		}
	}
	return m
}

// specificity is -1 for no match, the labels of the parent for a rule about
// the names below it, and more than any of those for the name itself.
func specificity(r *DomainRule, name string) int {
	if r.Domain == name {
		return 1000
	}
	if r.Domain == "*" {
		return 0
	}
	parent, isWildcard := strings.CutPrefix(r.Domain, "*.")
	if (isWildcard || r.IncludeSubdomains) && strings.HasSuffix(name, "."+parent) {
		return strings.Count(parent, ".") + 1
	}
	return -1
}

// FuzzFile: no file crashes the parser, errors are one line that names the
// file, and what is accepted survives being written and read again.
func FuzzFile(f *testing.F) {
	f.Add(specFile)
	for _, tt := range badFiles {
		f.Add(tt.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file, err := ParseFile("f.yaml", []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "policy f.yaml: ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is not one line that names the file: %q", err)
			}
			return
		}
		p := file.Policy
		if err := p.Validate(Limits{}); err != nil {
			t.Fatalf("accepted, but not valid: %v", err)
		}
		b, err := yaml.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseFile("f.yaml", b)
		if err != nil || !reflect.DeepEqual(again.Policy, p) {
			t.Fatalf("%+v written as\n%s\nread as %+v, %v", p, b, again, err)
		}
		j, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var fromJSON Policy
		if err := json.Unmarshal(j, &fromJSON); err != nil || !reflect.DeepEqual(&fromJSON, p) {
			t.Fatalf("%+v as JSON %s read as %+v, %v", p, j, fromJSON, err)
		}
	})
}

// FuzzCompile: the table decides every flow as the reference does, by the same
// rule, of the policy or of the guard above it.
func FuzzCompile(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x01\x00\x08\x0a\x01\x02\x03\x18\x01\xbb\x02\x11\x10\x0a\x01\x02\x04\x00\x00\x00"))
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		b := make([]byte, random.IntN(400))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		f.Add(b)
	}
	f.Add([]byte("\x02\xff\xfe\x00\x20\x10\x40\x80\x01\x01\x01\x60\x60\x60\x60\x08\x08\x00\x00\x80\x80"))
	f.Fuzz(func(t *testing.T, b []byte) {
		g := generator{b}
		p, guard := g.policy()
		if err := p.Validate(Limits{}); err != nil {
			t.Fatalf("generated an invalid policy: %v", err)
		}
		if err := guard.Validate(); err != nil {
			if !strings.Contains(err.Error(), "at most 32") {
				t.Fatalf("generated an invalid guard: %v", err)
			}
			return
		}
		c, err := p.CompileWith(guard)
		if err != nil {
			if !strings.Contains(err.Error(), "at most 128") {
				t.Fatal(err)
			}
			return
		}
		checkTable(t, c.Table)
		for _, flow := range g.flows(p.Allow, p.Deny, guard.Allow, guard.Deny) {
			for _, boot := range []time.Duration{0, 2} {
				checkAgreement(t, p, guard, c, flow, boot)
			}
		}
	})
}

func checkAgreement(t *testing.T, p *Policy, g *Guard, c *Compiled, flow Flow, boot time.Duration) {
	t.Helper()
	want := p.DecideWith(g, flow, boot)
	action, number, guard := c.Decide(flow, boot)
	rule, list, index := p.RuleAt(number)
	if guard {
		rule, list, index = g.RuleAt(number)
	}
	if action != want.Action || guard != want.Guard || rule != want.Rule || rule != nil && (list != want.List || index != want.Index) {
		t.Fatalf("%v at %d: compiled %v by rule %d (guard %t), want %v: %s\n%+v\nguard %v\n%+v",
			flow, boot, action, number, guard, want.Action, want.Reason, p, g, c.Table)
	}
}

// checkTable holds a table to what its documentation says.
func checkTable(t *testing.T, table *Table) {
	t.Helper()
	if table == nil {
		return
	}
	hasRoot := false
	for i, e := range table.Entries {
		hasRoot = hasRoot || e.Prefix == mapped4
		if i > 0 && e.Prefix == table.Entries[i-1].Prefix {
			t.Fatalf("prefix %v twice", e.Prefix)
		}
		if e.Prefix.Addr().BitLen() != 128 || e.Prefix != e.Prefix.Masked() {
			t.Fatalf("prefix %v is not in 128-bit form", e.Prefix)
		}
		length := 1
		for c := e.Clause; c.Next != 0; c = table.Clauses[c.Next] {
			if length++; length > MaxChain {
				t.Fatalf("chain of %v is longer than %d", e.Prefix, MaxChain)
			}
		}
	}
	if !hasRoot {
		t.Fatal("no entry for all of IPv4")
	}
}

// generator makes policies and flows of fuzz bytes. Addresses come from few
// bits, so that prefixes cover each other and flows hit them.
type generator struct{ b []byte }

func (g *generator) byte() byte {
	if len(g.b) == 0 {
		return 0
	}
	b := g.b[0]
	g.b = g.b[1:]
	return b
}

func (g *generator) addr() netip.Addr {
	kind, tail := g.byte(), g.byte()
	v4 := [4]byte{10 * (kind >> 7), tail >> 6, 0, tail & 3}
	var b [16]byte
	copy(b[12:], v4[:])
	switch kind % 8 {
	case 0, 1, 2:
		return netip.AddrFrom4(v4)
	case 3:
		copy(b[:], nat64.Addr().AsSlice()[:12])
	case 4:
		b = [16]byte{0x20, 0x02, v4[0], v4[1], v4[2], v4[3], 15: tail & 3}
	case 5: // ::/96, :: and ::1 among them
	case 6:
		b[0], b[1] = 0x20, 0x01
	case 7:
		b[10], b[11] = 0xff, 0xff
	}
	return netip.AddrFrom16(b)
}

func (g *generator) ports() []Ports {
	var ports []Ports
	for range g.byte() % 4 {
		first := uint16(g.byte()%4) + 1
		ports = append(ports, Ports{first, first + uint16(g.byte()%3), []Protocol{AnyProtocol, TCP, UDP}[g.byte()%3]})
	}
	return ports
}

func (g *generator) policy() (*Policy, *Guard) {
	p, guard := &Policy{}, &Guard{}
	switch g.byte() % 8 {
	case 0:
		p.Mode = ModeBlockAll
	case 1:
		p.Mode = ModeDisabled
	case 2, 3, 4:
		p.Mode = ModeDenylist
	default:
		p.Mode = ModeAllowlist
	}
	for range 32 {
		if len(g.b) == 0 {
			break
		}
		addr := g.addr().Unmap()
		prefix := netip.PrefixFrom(addr, int(g.byte())%(addr.BitLen()+1)).Masked()
		r := Rule{Prefix: prefix, Ports: g.ports(), Deadline: time.Duration(g.byte() % 4)}
		allow, deny, place := &p.Allow, &p.Deny, g.byte()
		if place >= 0xc0 {
			allow, deny, r.Deadline = &guard.Allow, &guard.Deny, 0
		}
		if place&1 == 0 {
			*allow = append(*allow, r)
		} else {
			*deny = append(*deny, r)
		}
	}
	return p, guard
}

// flows are to the edges of every rule and to all generated kinds of address.
func (g *generator) flows(lists ...[]Rule) []Flow {
	var addrs []netip.Addr
	for _, list := range lists {
		for _, r := range list {
			a := r.Prefix.Addr()
			addrs = append(addrs, a, a.Next(), a.Prev())
		}
	}
	for kind := range 8 {
		g.b = binary.BigEndian.AppendUint32(nil, uint32(kind)<<24|0x80<<16|uint32(kind|0x80)<<8|0x41)
		addrs = append(addrs, g.addr(), g.addr())
	}
	var flows []Flow
	for _, a := range addrs {
		for port := range uint16(4) {
			flows = append(flows, Flow{Addr: a, Protocol: TCP, Port: port})
		}
		flows = append(flows, Flow{Addr: a, Protocol: UDP, Port: 2}, Flow{Addr: a, Protocol: 132, Port: 2},
			Flow{Addr: a, Protocol: TCP, Portless: true}, Flow{Addr: a, Protocol: 1, Portless: true})
	}
	return flows
}
