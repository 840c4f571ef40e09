// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

func TestMatcher(t *testing.T) {
	m := NewMatcher(
		[]DomainRule{
			{Domain: "pypi.org"},
			{Domain: "*.wild.example"},
			{Domain: "tree.example", IncludeSubdomains: true},
			{Domain: "good.bad.example"},
			{Domain: "tie.example"},
			{Domain: "*.tie2.example"},
			{Domain: "*.deep.tree2.example"},
			{Domain: "xn--bcher-kva.example"},
			{Domain: "ports.example", Ports: []Ports{{443, 443, TCP}}},
			{Domain: "ports.example", Ports: []Ports{{22, 22, TCP}}},
		},
		[]DomainRule{
			{Domain: "evil.tree.example"},
			{Domain: "bad.example", IncludeSubdomains: true},
			{Domain: "tie.example"},
			{Domain: "tie2.example", IncludeSubdomains: true},
			{Domain: "*.tree2.example"},
			{Domain: "*.evil"},
		})
	for _, tt := range []struct {
		name string
		rule string // of the first; "": none
		list Action
	}{
		{"pypi.org", "pypi.org", Allow},
		{"PyPI.Org.", "pypi.org", Allow},
		{"files.pypi.org", "", Deny},
		{"notpypi.org", "", Deny},
		{"org", "", Deny},
		{"wild.example", "", Deny},
		{"a.wild.example", "*.wild.example", Allow},
		{"a.b.c.wild.example", "*.wild.example", Allow},
		{"awild.example", "", Deny},
		{"tree.example", "tree.example", Allow},
		{"a.tree.example", "tree.example", Allow},
		{"evil.tree.example", "evil.tree.example", Deny},
		{"a.evil.tree.example", "tree.example", Allow}, // the deny is for that name
		{"bad.example", "bad.example", Deny},
		{"a.bad.example", "bad.example", Deny},
		{"good.bad.example", "good.bad.example", Allow},
		{"tie.example", "tie.example", Deny},
		{"a.tie2.example", "tie2.example", Deny}, // as specific as *.tie2.example
		{"a.tree2.example", "*.tree2.example", Deny},
		{"deep.tree2.example", "*.tree2.example", Deny},
		{"a.deep.tree2.example", "*.deep.tree2.example", Allow},
		{"bücher.example", "xn--bcher-kva.example", Allow},
		{"BÜCHER.example.", "xn--bcher-kva.example", Allow},
		{"xn--BCHER-kva.example", "xn--bcher-kva.example", Allow},
		{"ports.example", "ports.example", Allow},
		{"_srv._tcp.x.evil", "*.evil", Deny},
		{".", "", Deny},
	} {
		got, err := m.Match(tt.name)
		if err != nil {
			t.Errorf("Match(%q): %v", tt.name, err)
			continue
		}
		rule := ""
		if len(got.Rules) > 0 {
			rule = got.Rules[0].Domain
		}
		if rule != tt.rule || got.List != tt.list {
			t.Errorf("Match(%q) = %v %q, want %v %q", tt.name, got.List, rule, tt.list, tt.rule)
		}
	}
	if got, err := m.Match("ports.example"); err != nil || len(got.Rules) != 2 {
		t.Errorf("two rules for one name: %+v, %v", got, err)
	}
	for _, name := range []string{"a..b", `a\.wild.example`, "a b", strings.Repeat("a.", 127) + "ab", "\x00.evil", "\xff.evil"} {
		if got, err := m.Match(name); err == nil {
			t.Errorf("Match(%q) = %+v, want an error", name, got)
		}
	}
}

func TestMatchEvery(t *testing.T) {
	m := NewMatcher([]DomainRule{{Domain: "*"}}, []DomainRule{{Domain: "*.evil"}, {Domain: "x.example"}})
	for name, want := range map[string]Action{
		"anything": Allow, "a.b.c": Allow, ".": Allow, "evil": Allow, "a.evil": Deny, "x.example": Deny, "y.x.example": Allow,
	} {
		if d := m.Decide(DNSAllowlist, name); d.Action != want {
			t.Errorf("%s: %+v, want %v", name, d, want)
		}
	}
}

func TestDecideName(t *testing.T) {
	dns := DNS{Allow: []DomainRule{{Domain: "good.example", Ports: []Ports{{443, 443, AnyProtocol}}}}, Deny: []DomainRule{{Domain: "*.evil.example"}}}
	for _, tt := range []struct {
		mode   Mode
		dns    DNSMode
		name   string
		action Action
		reason string
	}{
		{ModeAllowlist, DNSAllowlist, "good.example", Allow, "allow rule good.example ports 443"},
		{ModeAllowlist, DNSAllowlist, "Other.example", Deny, "dns mode allowlist, no rule matches other.example"},
		{ModeAllowlist, DNSDenylist, "other.example", Allow, "dns mode denylist, no rule matches other.example"},
		{ModeDenylist, DNSDenylist, "a.evil.example", Deny, "deny rule *.evil.example"},
		{ModeDenylist, DNSDenylist, "a..b", Deny, `"a..b" is not a name: empty label (a dot too many)`},
		{ModeDisabled, DNSDisabled, "a.evil.example", Allow, "dns mode disabled"},
		{ModeAllowlist, DNSProxy, "good.example", Deny, "dns mode proxy: the rules do not decide"},
		{ModeBlockAll, DNSAllowlist, "good.example", Deny, "mode block-all"},
		{ModeBlockAll, DNSDisabled, "good.example", Deny, "mode block-all"},
		{ModeAllowlist, 9, "good.example", Deny, "dns mode dns mode(9): the rules do not decide"},
	} {
		p := &Policy{Mode: tt.mode, DNS: dns}
		p.DNS.Mode = tt.dns
		if d := p.DecideName(tt.name); d.Action != tt.action || d.Reason != tt.reason {
			t.Errorf("%v, %v, %s: %+v, want %v, %q", tt.mode, tt.dns, tt.name, d, tt.action, tt.reason)
		}
	}
}
