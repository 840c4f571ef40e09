// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"time"
)

// The YAML form is that of a policy file, which ParseFile reads back to the
// same policy, but for the deadlines, which only mean something in this boot.

type policyYAML struct {
	Mode       Mode         `yaml:"mode"`
	Audit      bool         `yaml:"audit,omitempty"`
	Allow      []any        `yaml:"allow,omitempty"`
	Deny       []any        `yaml:"deny,omitempty"`
	Replies    ReplyMode    `yaml:"replies,omitempty"`
	RepliesUDP []Ports      `yaml:"replies_udp,flow,omitempty"`
	Loopback   LoopbackMode `yaml:"loopback,omitempty"`
	Source     []Source     `yaml:"source,omitempty"`
	DNS        dnsYAML      `yaml:"dns"`
}

type dnsYAML struct {
	Mode       DNSMode           `yaml:"mode"`
	Allow      []any             `yaml:"allow,omitempty"`
	Deny       []any             `yaml:"deny,omitempty"`
	Upstreams  []netip.AddrPort  `yaml:"upstreams,omitempty"`
	RefuseWith RefuseCode        `yaml:"refuse_with,omitempty"`
	Forward    []zoneForwardYAML `yaml:"forward,omitempty"`
}

type zoneForwardYAML struct {
	Zone string `yaml:"zone"`
	To   any    `yaml:"to,flow"`
}

type ruleYAML struct {
	CIDR      netip.Prefix `yaml:"cidr"`
	Ports     []Ports      `yaml:"ports,flow,omitempty"`
	TTL       string       `yaml:"ttl,omitempty"`
	ExpiresAt string       `yaml:"expires_at,omitempty"`
}

type domainRuleYAML struct {
	Domain            string  `yaml:"domain"`
	IncludeSubdomains bool    `yaml:"include_subdomains,omitempty"`
	Ports             []Ports `yaml:"ports,flow,omitempty"`
	Private           bool    `yaml:"private,omitempty"`
	Force             bool    `yaml:"force,omitempty"`
}

// MarshalYAML writes the policy as a policy file.
func (p Policy) MarshalYAML() (any, error) {
	out := policyYAML{
		Mode: p.Mode, Audit: p.Audit, Replies: p.Replies, RepliesUDP: p.RepliesUDP,
		Loopback: p.Loopback, Source: p.Source,
		Allow: rulesYAML(p.Allow), Deny: rulesYAML(p.Deny),
		DNS: dnsYAML{
			Mode: p.DNS.Mode, Upstreams: p.DNS.Upstreams, RefuseWith: p.DNS.RefuseWith,
			Allow: domainsYAML(p.DNS.Allow), Deny: domainsYAML(p.DNS.Deny),
		},
	}
	for _, z := range p.DNS.Forward {
		f := zoneForwardYAML{Zone: z.Zone, To: z.To}
		if z.Original {
			f.To = "original"
		}
		out.DNS.Forward = append(out.DNS.Forward, f)
	}
	return out, nil
}

// rulesYAML writes a rule that is only a prefix in short form.
func rulesYAML(rules []Rule) []any {
	var out []any
	for _, r := range rules {
		if len(r.Ports) == 0 && !r.timed() {
			out = append(out, r.Prefix)
			continue
		}
		y := ruleYAML{CIDR: r.Prefix, Ports: r.Ports}
		if r.TTL != 0 {
			y.TTL = r.TTL.String()
		}
		if !r.ExpiresAt.IsZero() {
			y.ExpiresAt = r.ExpiresAt.UTC().Format(time.RFC3339Nano)
		}
		out = append(out, y)
	}
	return out
}

func domainsYAML(rules []DomainRule) []any {
	var out []any
	for _, r := range rules {
		if len(r.Ports) == 0 && !r.IncludeSubdomains && !r.Private && !r.Force {
			out = append(out, r.Domain)
			continue
		}
		out = append(out, domainRuleYAML(r))
	}
	return out
}
