// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
)

// DefaultRules is how many rules a policy may hold unless configured.
const DefaultRules = 100_000

// What a policy holds beside rules is small; these bound it.
const (
	maxUpstreams  = 16
	maxForwards   = 256
	maxRepliesUDP = 64
	maxSources    = 64
)

// Limits bounds a policy.
type Limits struct {
	Rules int // address and domain rules together; 0: DefaultRules
}

// InvalidError says which part of a policy is refused, and why.
type InvalidError struct {
	Field  string // "allow[2]", "dns.upstreams[0]", "mode"
	Value  string // as far as it can be shown
	Reason string // what is wrong, with the next step
}

func (e *InvalidError) Error() string { return rulePlace(e.Field) + ": " + e.Reason }

// rulePlace turns "dns.allow[2]" into "dns allow rule 3": people count from 1.
func rulePlace(field string) string {
	list, index, ok := strings.Cut(strings.TrimSuffix(field, "]"), "[")
	var i int
	if _, err := fmt.Sscanf(index, "%d", &i); !ok || err != nil {
		return field
	}
	what := "entry"
	if strings.HasSuffix(list, "allow") || strings.HasSuffix(list, "deny") {
		what = "rule"
	}
	return fmt.Sprintf("%s %s %d", strings.ReplaceAll(list, ".", " "), what, i+1)
}

// Validate reports the first thing in the policy that cannot be put in force,
// as an [*InvalidError].
func (p *Policy) Validate(l Limits) error {
	if err := p.validateSettings(); err != nil {
		return err
	}
	limit := l.Rules
	if limit == 0 {
		limit = DefaultRules
	}
	if n := len(p.Allow) + len(p.Deny) + len(p.DNS.Allow) + len(p.DNS.Deny); n > limit {
		return &InvalidError{"rules", fmt.Sprint(n), fmt.Sprintf("%d rules, at most %d (limits.rules)", n, limit)}
	}
	for _, list := range []Action{Allow, Deny} {
		rules := p.list(list)
		for i := range rules {
			if err := rules[i].check(); err != nil {
				return invalidAt(list.String(), i, rules[i].String(), err)
			}
		}
		domains := p.DNS.list(list)
		for i := range domains {
			if err := domains[i].check(list); err != nil {
				return invalidAt("dns."+list.String(), i, domains[i].Domain, err)
			}
		}
	}
	return nil
}

func (p *Policy) validateSettings() error {
	for _, e := range []struct {
		enum
		field string
		value uint8
	}{
		{modes, "mode", uint8(p.Mode)},
		{replyModes, "replies", uint8(p.Replies)},
		{loopbackModes, "loopback", uint8(p.Loopback)},
		{dnsModes, "dns.mode", uint8(p.DNS.Mode)},
		{refuseCodes, "dns.refuse_with", uint8(p.DNS.RefuseWith)},
	} {
		if !e.has(e.value) {
			return &InvalidError{e.field, fmt.Sprint(e.value), "unknown (one of " + strings.Join(e.names, ", ") + ")"}
		}
	}
	for _, l := range []struct {
		field  string
		n, max int
	}{
		{"replies_udp", len(p.RepliesUDP), maxRepliesUDP},
		{"source", len(p.Source), maxSources},
		{"dns.upstreams", len(p.DNS.Upstreams), maxUpstreams},
		{"dns.forward", len(p.DNS.Forward), maxForwards},
	} {
		if l.n > l.max {
			return &InvalidError{l.field, fmt.Sprint(l.n), fmt.Sprintf("%d entries, at most %d", l.n, l.max)}
		}
	}
	for i, ports := range p.RepliesUDP {
		if err := checkReplyPorts(ports); err != nil {
			return invalidAt("replies_udp", i, ports.String(), err)
		}
	}
	for i, s := range p.Source {
		if err := s.check(); err != nil {
			return invalidAt("source", i, s.String(), err)
		}
	}
	for i, s := range p.DNS.Upstreams {
		if err := checkServer(s); err != nil {
			return invalidAt("dns.upstreams", i, s.String(), err)
		}
	}
	for i := range p.DNS.Forward {
		if err := p.DNS.Forward[i].check(); err != nil {
			return invalidAt("dns.forward", i, p.DNS.Forward[i].Zone, err)
		}
	}
	return nil
}

func invalidAt(field string, i int, value string, err error) error {
	return &InvalidError{fmt.Sprintf("%s[%d]", field, i), value, err.Error()}
}
