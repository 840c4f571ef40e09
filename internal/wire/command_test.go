// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

func TestChangeFrom(t *testing.T) {
	ten := netip.MustParsePrefix("10.0.0.0/8")
	before := &policy.Policy{
		Mode: policy.ModeAllowlist,
		Deny: []policy.Rule{{Prefix: ten}},
		DNS:  policy.DNS{Mode: policy.DNSAllowlist, Allow: []policy.DomainRule{{Domain: "x.example"}}},
	}
	with := func(edit func(p *policy.Policy)) *policy.Policy {
		p := *before
		edit(&p)
		return &p
	}
	for _, tt := range []struct {
		name, command string
		want          *policy.Policy
		whole         bool
		warning       string
	}{
		{"set_mode", `set_mode { mode: POLICY_MODE_DENYLIST }`,
			with(func(p *policy.Policy) { p.Mode = policy.ModeDenylist }), false, ""},
		{"allow_cidr", `allow_cidr { cidr: "10.9.9.9/8" ports { first: 443 } }`,
			with(func(p *policy.Policy) {
				p.Allow = []policy.Rule{{Prefix: ten, Ports: []policy.Ports{{First: 443, Last: 443}}}}
			}), false, "allow_cidr.cidr: prefix 10.9.9.9/8 has host bits set; taken as 10.0.0.0/8"},
		{"deny_cidr", `deny_cidr { cidr: "192.0.2.1" }`,
			with(func(p *policy.Policy) {
				p.Deny = []policy.Rule{{Prefix: ten}, {Prefix: netip.MustParsePrefix("192.0.2.1/32")}}
			}), false, ""},
		{"remove_cidr", `remove_cidr: "10.1.0.0/8"`,
			with(func(p *policy.Policy) { p.Deny = nil }), false,
			"remove_cidr: prefix 10.1.0.0/8 has host bits set; taken as 10.0.0.0/8"},
		{"remove_cidr of none", `remove_cidr: "192.0.2.0/24"`, before, false, ""},
		{"set_dns_mode", `set_dns_mode { mode: DNS_MODE_DISABLED }`,
			with(func(p *policy.Policy) { p.DNS.Mode = policy.DNSDisabled }), false, ""},
		{"allow_domain", `allow_domain { domain: "*.Y.example" }`,
			with(func(p *policy.Policy) {
				p.DNS.Allow = []policy.DomainRule{{Domain: "x.example"}, {Domain: "*.y.example", Force: true}}
			}), false, ""},
		{"deny_domain", `deny_domain { domain: "y.example" include_subdomains: true }`,
			with(func(p *policy.Policy) {
				p.DNS.Deny = []policy.DomainRule{{Domain: "y.example", IncludeSubdomains: true, Force: true}}
			}), false, ""},
		{"remove_domain", `remove_domain: "X.Example."`,
			with(func(p *policy.Policy) { p.DNS.Allow = nil }), false, ""},
		{"remove_domain does not mean what is below", `remove_domain: "*.x.example"`, before, false, ""},
		{"remove_domain of none", `remove_domain: "y.example"`, before, false, ""},
		{"allow_domain with all it can have", `allow_domain { domain: "ÿ.example." ports { first: 443 protocol: PROTOCOL_TCP } private: true }`,
			with(func(p *policy.Policy) {
				p.DNS.Allow = []policy.DomainRule{{Domain: "x.example"}, {
					Domain: "xn--wda.example", Private: true, Force: true, Ports: []policy.Ports{{First: 443, Last: 443, Protocol: policy.TCP}},
				}}
			}), false, ""},
		{"include_subdomains says nothing more of a wildcard", `allow_domain { domain: "*.y.example" include_subdomains: true }`,
			with(func(p *policy.Policy) {
				p.DNS.Allow = []policy.DomainRule{{Domain: "x.example"}, {Domain: "*.y.example", Force: true}}
			}), false, ""},
		{"every name", `deny_domain { domain: "*" }`,
			with(func(p *policy.Policy) { p.DNS.Deny = []policy.DomainRule{{Domain: "*", Force: true}} }), false, ""},
		{"bulk_update", `bulk_update { ` + rich + ` }`, richPolicy, true, ""},
		{"subscribed_ack", `subscribed_ack { ` + rich + ` }`, richPolicy, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			change, err := wire.ChangeFrom(command(t, tt.command))
			if err != nil {
				t.Fatal(err)
			}
			untouched := *before
			got, err := change.Edit(before)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(normal(got), normal(tt.want)) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if !reflect.DeepEqual(*before, untouched) {
				t.Error("the policy in force was edited")
			}
			if change.Whole != tt.whole || strings.Join(change.Warnings, "|") != tt.warning {
				t.Errorf("whole %v, warnings %q", change.Whole, change.Warnings)
			}
		})
	}
}

// normal takes empty lists for none.
func normal(p *policy.Policy) policy.Policy {
	n := *p
	n.Allow, n.Deny = append([]policy.Rule(nil), p.Allow...), append([]policy.Rule(nil), p.Deny...)
	n.DNS.Allow = append([]policy.DomainRule(nil), p.DNS.Allow...)
	n.DNS.Deny = append([]policy.DomainRule(nil), p.DNS.Deny...)
	return n
}

func TestChangeFromRefuses(t *testing.T) {
	for _, tt := range []struct {
		command, field string
	}{
		{``, "command"},
		{`sync_ack {}`, "command"},
		{`go_away {}`, "command"},
		{`set_mode {}`, "set_mode.mode"},
		{`set_mode { mode: 12 }`, "set_mode.mode"},
		{`set_dns_mode {}`, "set_dns_mode.mode"},
		{`allow_cidr { cidr: "x" }`, "allow_cidr.cidr"},
		{`deny_cidr { cidr: "::/0" ports {} }`, "deny_cidr.ports[0]"},
		{`remove_cidr: ""`, "remove_cidr"},
		{`allow_domain { domain: "" }`, "allow_domain.domain"},
		{`deny_domain { domain: "a b" }`, "deny_domain.domain"},
		{`deny_domain { domain: "a.example" ports { first: 443 } }`, "deny_domain.ports"},
		{`remove_domain: ".."`, "remove_domain"},
		{`bulk_update { mode: POLICY_MODE_ALLOWLIST dns {} }`, "bulk_update.dns.mode"},
		{`bulk_update { mode: POLICY_MODE_ALLOWLIST dns { mode: DNS_MODE_ALLOWLIST deny_domains { domain: "a.example" ports { first: 1 } } } }`,
			"bulk_update.dns.deny_domains[0].ports"},
		{`bulk_update {}`, "bulk_update.mode"},
		{`subscribed_ack {}`, "subscribed_ack.mode"},
		{`bulk_update { mode: POLICY_MODE_ALLOWLIST allow_cidrs { cidr: "10.0.0.0/8" } allow_cidrs { cidr: "10.0.0/8" } }`,
			"bulk_update.allow_cidrs[1].cidr"},
		{`put_policy { name: "base" }`, "command"},
		{`delete_policy: "base"`, "command"},
		{`use_policy {}`, "use_policy.name"},
		{`subscribed_ack { use_policy {} }`, "subscribed_ack.use_policy.name"},
		{`subscribed_ack { use_policy { name: "base" } mode: POLICY_MODE_ALLOWLIST }`, "subscribed_ack.use_policy"},
	} {
		t.Run(tt.command, func(t *testing.T) {
			cmd := command(t, tt.command)
			change, err := wire.ChangeFrom(cmd)
			refused := wantRefused(t, err)
			if change.Edit != nil {
				t.Error("an edit beside the refusal")
			}
			if got := refused.Violations[0].Field; got != tt.field {
				t.Errorf("got %s: %v", got, err)
			}
			if list := wire.CommandViolations(cmd, err); list[0].GetField() != tt.field {
				t.Errorf("result names %s", list[0].GetField())
			}
		})
	}
}

// Reasons that package policy finds come out by the fields of the command.
func TestViolationsOfPolicy(t *testing.T) {
	cmd := command(t, `bulk_update { mode: POLICY_MODE_ALLOWLIST }`)
	for _, tt := range []struct {
		err   error
		field string
	}{
		{&policy.InvalidError{Field: "allow[2]", Value: "v", Reason: "r"}, "bulk_update.allow_cidrs[2]"},
		{&policy.InvalidError{Field: "deny[0]", Value: "v", Reason: "r"}, "bulk_update.deny_cidrs[0]"},
		{&policy.InvalidError{Field: "dns.allow[1]", Value: "v", Reason: "r"}, "bulk_update.dns.allow_domains[1]"},
		{&policy.InvalidError{Field: "dns.upstreams[1]", Value: "v", Reason: "r"}, "bulk_update.dns.upstream_servers[1]"},
		{&policy.InvalidError{Field: "source[1]", Value: "v", Reason: "r"}, "bulk_update.source[1]"},
		{&policy.InvalidError{Field: "rules", Value: "v", Reason: "r"}, "bulk_update.rules"},
		{errors.New("the kernel has no room"), "bulk_update"},
	} {
		list := wire.CommandViolations(cmd, tt.err)
		if len(list) != 1 || list[0].GetField() != tt.field || list[0].GetExpected() == "" {
			t.Errorf("%v: got %v", tt.err, list)
		}
	}
}

func TestApplied(t *testing.T) {
	got := wire.Applied(wire.Ref{Name: "base", Revision: "r7"}, &policy.Policy{Audit: true}, errors.New(strings.Repeat("x", 1000)))
	if got.GetRevision() != "r7" || got.GetPolicyName() != "base" || !got.GetAudit() || len(got.GetError()) != 256 {
		t.Errorf("got %v", got)
	}
	if got := wire.Applied(wire.Ref{}, policy.BlockAll(), nil); got.GetError() != "" || got.GetAudit() {
		t.Errorf("got %v", got)
	}
}
