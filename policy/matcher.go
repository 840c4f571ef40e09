// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
)

// Matcher finds the domain rules for a name. It is immutable and safe for
// concurrent use.
type Matcher struct {
	exact map[string]*ruleSet // by name: the rules that name it
	below map[string]*ruleSet // by name: the rules for every name below it; "" for "*"
}

// ruleSet holds rules of equal specificity.
type ruleSet struct{ allow, deny []*DomainRule }

// NameMatch is what domain rules say about a name.
type NameMatch struct {
	Name string // canonical
	// Rules are the most specific ones, of one list; none: no rule matches.
	// There are several when one list holds several for the same names, each
	// with its own ports.
	Rules []*DomainRule
	List  Action // the list in which Rules stand
}

// NameDecision is the verdict on a query for a name.
type NameDecision struct {
	NameMatch
	Action Action
	Reason string // for people
}

// NewMatcher indexes the rules. They must not change afterwards.
func NewMatcher(allow, deny []DomainRule) *Matcher {
	m := &Matcher{exact: map[string]*ruleSet{}, below: map[string]*ruleSet{}}
	for i := range allow {
		for _, s := range m.places(&allow[i]) {
			s.allow = append(s.allow, &allow[i])
		}
	}
	for i := range deny {
		for _, s := range m.places(&deny[i]) {
			s.deny = append(s.deny, &deny[i])
		}
	}
	return m
}

// places returns where a rule belongs: under its name, below it, or both.
func (m *Matcher) places(r *DomainRule) []*ruleSet {
	at := func(index map[string]*ruleSet, name string) *ruleSet {
		if index[name] == nil {
			index[name] = &ruleSet{}
		}
		return index[name]
	}
	if r.Domain == "*" {
		return []*ruleSet{at(m.below, "")}
	}
	if base, isWildcard := strings.CutPrefix(r.Domain, "*."); isWildcard {
		return []*ruleSet{at(m.below, base)}
	}
	places := []*ruleSet{at(m.exact, r.Domain)}
	if r.IncludeSubdomains {
		places = append(places, at(m.below, r.Domain))
	}
	return places
}

// Match finds the most specific rules for a name, in whatever form it is
// written. A rule for the name itself is more specific than one for all names
// below a parent, and a nearer parent more than a farther one. Between equals
// deny wins. What is not a name is an error.
func (m *Matcher) Match(name string) (NameMatch, error) {
	name, err := canonicalName(name)
	if err != nil {
		return NameMatch{}, err
	}
	if s := m.exact[name]; s != nil {
		return s.match(name), nil
	}
	for parent := name; parent != ""; {
		_, parent, _ = strings.Cut(parent, ".")
		if s := m.below[parent]; s != nil {
			return s.match(name), nil
		}
	}
	if s := m.below[""]; s != nil { // the root itself has no parent
		return s.match(name), nil
	}
	return NameMatch{Name: name}, nil
}

func (s *ruleSet) match(name string) NameMatch {
	if len(s.deny) > 0 {
		return NameMatch{Name: name, Rules: s.deny, List: Deny}
	}
	return NameMatch{Name: name, Rules: s.allow, List: Allow}
}

// Decide judges a query. Where the rules are not asked (disabled) it passes;
// where the control plane is (proxy) it is refused, for this is not the answer.
func (m *Matcher) Decide(mode DNSMode, name string) NameDecision {
	var d NameDecision
	if mode == DNSDisabled {
		d.Action, d.Reason = Allow, "dns mode disabled"
		return d
	}
	if mode != DNSAllowlist && mode != DNSDenylist {
		d.Reason = "dns mode " + mode.String() + ": the rules do not decide"
		return d
	}
	var err error
	if d.NameMatch, err = m.Match(name); err != nil {
		d.Reason = fmt.Sprintf("%s is not a name: %v", quote(name), err)
		return d
	}
	if len(d.Rules) > 0 {
		d.Action, d.Reason = d.List, d.List.String()+" rule "+d.Rules[0].String()
		return d
	}
	if mode == DNSDenylist {
		d.Action = Allow
	}
	d.Reason = "dns mode " + mode.String() + ", no rule matches " + d.Name
	return d
}

// DecideName judges a query under the whole policy: block-all refuses every
// name. For many queries keep a Matcher.
func (p *Policy) DecideName(name string) NameDecision {
	if p.Mode == ModeBlockAll {
		return NameDecision{Reason: "mode block-all"}
	}
	return NewMatcher(p.DNS.Allow, p.DNS.Deny).Decide(p.DNS.Mode, name)
}

func (d *DNS) list(a Action) []DomainRule {
	if a == Allow {
		return d.Allow
	}
	return d.Deny
}
