// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// WithMode returns a copy with another mode.
func (p *Policy) WithMode(m Mode) *Policy {
	c := *p
	c.Mode = m
	return &c
}

// WithDNSMode returns a copy with another DNS mode.
func (p *Policy) WithDNSMode(m DNSMode) *Policy {
	c := *p
	c.DNS.Mode = m
	return &c
}

// WithAllow returns a copy that holds r in the allow list, in the place of a
// rule with the same prefix and ports if there is one. A rule that says the
// same already stays as it is, deadline included.
func (p *Policy) WithAllow(r Rule) *Policy {
	c := *p
	c.Allow = withRule(p.Allow, r)
	return &c
}

// WithDeny is WithAllow for the deny list.
func (p *Policy) WithDeny(r Rule) *Policy {
	c := *p
	c.Deny = withRule(p.Deny, r)
	return &c
}

// WithoutPrefix returns a copy without any rule for exactly this prefix, in
// both lists. That there is none is not an error.
func (p *Policy) WithoutPrefix(prefix netip.Prefix) *Policy {
	gone := func(r Rule) bool { return r.Prefix == prefix }
	c := *p
	c.Allow = slices.DeleteFunc(slices.Clone(p.Allow), gone)
	c.Deny = slices.DeleteFunc(slices.Clone(p.Deny), gone)
	return &c
}

// WithAllowDomain returns a copy that holds r in the DNS allow list, in the
// place of a rule with the same domain and ports if there is one.
func (p *Policy) WithAllowDomain(r DomainRule) *Policy {
	c := *p
	c.DNS.Allow = withDomain(p.DNS.Allow, r)
	return &c
}

// WithDenyDomain is WithAllowDomain for the DNS deny list.
func (p *Policy) WithDenyDomain(r DomainRule) *Policy {
	c := *p
	c.DNS.Deny = withDomain(p.DNS.Deny, r)
	return &c
}

// WithoutDomain returns a copy without any rule for exactly this domain in
// canonical form ("x" and "*.x" are two), in both DNS lists.
func (p *Policy) WithoutDomain(domain string) *Policy {
	gone := func(r DomainRule) bool { return r.Domain == domain }
	c := *p
	c.DNS.Allow = slices.DeleteFunc(slices.Clone(p.DNS.Allow), gone)
	c.DNS.Deny = slices.DeleteFunc(slices.Clone(p.DNS.Deny), gone)
	return &c
}

func withRule(rules []Rule, r Rule) []Rule {
	i := slices.IndexFunc(rules, func(o Rule) bool { return o.same(&r) })
	if i < 0 {
		return append(slices.Clip(rules), r) // clipped: append copies
	}
	if old := &rules[i]; old.TTL == r.TTL && old.ExpiresAt.Equal(r.ExpiresAt) {
		return rules
	}
	rules = slices.Clone(rules)
	rules[i] = r
	return rules
}

func withDomain(rules []DomainRule, r DomainRule) []DomainRule {
	i := slices.IndexFunc(rules, func(o DomainRule) bool { return o.same(&r) })
	if i < 0 {
		return append(slices.Clip(rules), r)
	}
	rules = slices.Clone(rules)
	rules[i] = r
	return rules
}
