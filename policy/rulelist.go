// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// anyRule is one entry of a list in a policy file: an address rule, or a
// domain rule when domain is not nil.
type anyRule struct {
	rule   *Rule
	domain *DomainRule
}

// ruleList reads allow or deny. addresses is nil in the dns section, where
// only names stand, and names is nil in a guard, which has only addresses.
func (d *decoder) ruleList(n *yaml.Node, where string, addresses *[]Rule, names *[]DomainRule) error {
	list := Allow
	if strings.HasSuffix(where, "deny") {
		list = Deny
	}
	return sequence(n, where, func(i int, item *yaml.Node) error {
		rules, err := d.entry(item)
		for _, r := range rules {
			if err != nil {
				break
			}
			switch {
			case d.rules == maxFileRules:
				err = fmt.Errorf("more than %d rules, sets included", maxFileRules)
			case r.domain != nil && names == nil:
				err = fmt.Errorf("%s is a name; a guard holds addresses (names are a policy's)", r.domain.Domain)
			case r.domain != nil:
				if err = r.domain.check(list); err == nil {
					*names = append(*names, *r.domain)
				}
			case addresses == nil:
				err = fmt.Errorf("%s is an address; here only names stand (write it in %s)", r.rule, list)
			default:
				if err = r.rule.check(); err == nil {
					*addresses = append(*addresses, *r.rule)
				}
			}
			d.rules++
		}
		if err != nil {
			return at(item, "%s rule %d: %v", where, i+1, err)
		}
		return nil
	})
}

// entry reads one entry: a short form, a set, or a mapping.
func (d *decoder) entry(n *yaml.Node) ([]anyRule, error) {
	if n = resolve(n); n.Kind == yaml.MappingNode {
		var r anyRule
		var err error
		if lookup(n, "domain") != nil {
			r.domain, err = domainMapping(n)
		} else {
			r.rule, err = ruleMapping(n)
		}
		return []anyRule{r}, err
	}
	s, err := scalar(n)
	if err != nil {
		return nil, err
	}
	if name, ok := strings.CutPrefix(s, "set:"); ok {
		return d.set(name)
	}
	r, err := parseSetRule(s)
	return []anyRule{r}, err
}

func (d *decoder) set(name string) ([]anyRule, error) {
	texts, ok := d.sets[name]
	if !ok {
		texts, ok = d.shared[name]
	}
	if !ok {
		var names []string
		for _, sets := range []Sets{d.sets, d.shared} {
			for known := range sets {
				names = append(names, known)
			}
		}
		return nil, fmt.Errorf("set %s: not defined%s", quote(name), didYouMean(name, names))
	}
	rules := make([]anyRule, 0, len(texts))
	for _, s := range texts {
		r, err := parseSetRule(s)
		if err != nil {
			return nil, fmt.Errorf("set %s: %v", name, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parseSetRule(s string) (anyRule, error) {
	if strings.HasPrefix(s, "set:") {
		return anyRule{}, fmt.Errorf("%s: a set holds rules, not sets", quote(s))
	}
	rule, domain, err := Parse(s)
	return anyRule{rule, domain}, err
}

func validSetName(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return s != ""
}

func ruleMapping(n *yaml.Node) (*Rule, error) {
	var r Rule
	err := mapping(n, "address rule: ", []key{
		{"cidr", func(n *yaml.Node) error {
			s, err := scalar(n)
			if err == nil {
				r.Prefix, _, err = ParsePrefix(s, RefuseHostBits)
			}
			return err
		}},
		{"ports", func(n *yaml.Node) error { return portList(n, &r.Ports) }},
		{"ttl", func(n *yaml.Node) error {
			s, err := scalar(n)
			if err != nil {
				return err
			}
			r.TTL, err = time.ParseDuration(s)
			if err != nil || r.TTL <= 0 {
				return fmt.Errorf("ttl %s is not a positive duration (10m, 1h30m)", quote(s))
			}
			return nil
		}},
		{"expires_at", func(n *yaml.Node) error {
			s, err := scalar(n)
			if err != nil {
				return err
			}
			r.ExpiresAt, err = time.Parse(time.RFC3339, s)
			if err != nil || r.ExpiresAt.IsZero() {
				return fmt.Errorf("expires_at %s is not a time (2026-01-31T12:00:00Z)", quote(s))
			}
			r.ExpiresAt = r.ExpiresAt.UTC()
			return nil
		}},
	})
	if err == nil && !r.Prefix.IsValid() {
		err = fmt.Errorf("cidr or domain is missing")
	}
	return &r, err
}

func domainMapping(n *yaml.Node) (*DomainRule, error) {
	var r DomainRule
	err := mapping(n, "domain rule: ", []key{
		{"domain", func(n *yaml.Node) error {
			s, err := scalar(n)
			if err == nil {
				r.Domain, err = ParseDomain(s)
			}
			return err
		}},
		{"include_subdomains", boolean(&r.IncludeSubdomains)},
		{"ports", func(n *yaml.Node) error { return portList(n, &r.Ports) }},
		{"private", boolean(&r.Private)},
		{"force", boolean(&r.Force)},
	})
	return &r, err
}

// portList reads a list of port ranges, or one alone. Empty would mean every
// protocol, which nobody who writes the key can want.
func portList(n *yaml.Node, ports *[]Ports) error {
	var err error
	if s, scalarErr := scalar(n); scalarErr == nil {
		var p Ports
		p, err = ParsePorts(s)
		*ports = []Ports{p}
	} else {
		err = each(n, "ports", ports, ParsePorts)
	}
	if err == nil && len(*ports) == 0 {
		err = fmt.Errorf("ports: none are listed (leave the key out for every protocol)")
	}
	return err
}
