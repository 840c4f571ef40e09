// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// decoder reads the keys of a policy file. It walks the YAML nodes itself, for
// the lines of errors and because unknown and repeated keys must not pass.
type decoder struct {
	shared   Sets // from sets.yaml
	sets     Sets // of this file
	rules    int  // read so far, sets expanded
	tests    []test
	warnings []string
}

func (d *decoder) file(n *yaml.Node, f *File) error {
	keys := append([]key{
		{"version", version},
		{"match", func(n *yaml.Node) (err error) { f.Match, err = stringMap(n); return err }},
		{"priority", func(n *yaml.Node) (err error) { f.Priority, err = integer(n); return err }},
		{"sets", d.readSets},
		{"tests", d.readTests},
	}, d.policyKeys(f.Policy)...)
	if err := d.policy(n, f.Policy, keys); err != nil {
		return err
	}
	f.Sets = d.sets
	if f.Policy.DNS.Mode == DNSProxy {
		return at(lookup(lookup(n, "dns"), "mode"), "dns.mode proxy needs a remote control plane, which decides the queries")
	}
	f.Tests = len(d.tests)
	return d.runTests(f.Policy)
}

func (d *decoder) setsFile(n *yaml.Node) error {
	return mapping(n, "", []key{{"version", version}, {"sets", d.readSets}})
}

// policy reads the keys and settles what one says about another.
func (d *decoder) policy(n *yaml.Node, p *Policy, keys []key) error {
	// Sets may stand below the lists that use them.
	if sets := lookup(n, "sets"); sets != nil {
		if err := d.readSets(sets); err != nil {
			return err
		}
	}
	if err := mapping(n, "", keys); err != nil {
		return err
	}
	// A file caught half written, or a mistyped one, must not decide.
	if lookup(n, "mode") == nil {
		return at(n, "mode is missing (one of block-all, allowlist, denylist, disabled)")
	}
	if lookup(lookup(n, "dns"), "mode") == nil {
		p.DNS.Mode = p.Mode.dns()
	}
	if err := p.validateSettings(); err != nil {
		return at(n, "%v", err)
	}
	if p.DNS.Mode == DNSDisabled && p.Mode != ModeDisabled && len(p.DNS.Allow)+len(p.DNS.Deny) > 0 {
		d.warnings = append(d.warnings, "names in allow and deny have no effect: dns.mode is disabled")
	}
	return nil
}

// dns is the DNS mode of a policy file that names none.
func (m Mode) dns() DNSMode {
	switch m {
	case ModeDenylist:
		return DNSDenylist
	case ModeDisabled:
		return DNSDisabled
	}
	return DNSAllowlist
}

func (d *decoder) policyKeys(p *Policy) []key {
	return []key{
		{"mode", text(&p.Mode)},
		{"audit", boolean(&p.Audit)},
		{"allow", func(n *yaml.Node) error { return d.ruleList(n, "allow", &p.Allow, &p.DNS.Allow) }},
		{"deny", func(n *yaml.Node) error { return d.ruleList(n, "deny", &p.Deny, &p.DNS.Deny) }},
		{"dns", func(n *yaml.Node) error { return mapping(n, "dns: ", d.dnsKeys(&p.DNS)) }},
		{"replies", text(&p.Replies)},
		{"replies_udp", func(n *yaml.Node) error { return portList(n, &p.RepliesUDP) }},
		{"loopback", text(&p.Loopback)},
		{"source", func(n *yaml.Node) error { return each(n, "source", &p.Source, ParseSource) }},
	}
}

func (d *decoder) dnsKeys(p *DNS) []key {
	return []key{
		{"mode", text(&p.Mode)},
		{"allow", func(n *yaml.Node) error { return d.ruleList(n, "dns allow", nil, &p.Allow) }},
		{"deny", func(n *yaml.Node) error { return d.ruleList(n, "dns deny", nil, &p.Deny) }},
		{"upstreams", func(n *yaml.Node) error { return each(n, "upstreams", &p.Upstreams, ParseServer) }},
		{"refuse_with", text(&p.RefuseWith)},
		{"forward", func(n *yaml.Node) error { return forwardList(n, &p.Forward) }},
	}
}

func (d *decoder) readSets(n *yaml.Node) error {
	if d.sets != nil { // read ahead
		return nil
	}
	d.sets = Sets{}
	return pairs(n, "sets: ", func(name string, k, v *yaml.Node) error {
		if !validSetName(name) {
			return at(k, "set %s: a name is made of letters, digits, -, _ and .", quote(name))
		}
		rules := []string{}
		err := sequence(v, "set "+name, func(i int, item *yaml.Node) error {
			s, err := scalar(item)
			if err == nil {
				_, err = parseSetRule(s)
			}
			if err != nil {
				return at(item, "set %s rule %d: %v", name, i+1, err)
			}
			rules = append(rules, s)
			return nil
		})
		d.sets[name] = rules
		return err
	})
}

func version(n *yaml.Node) error {
	v, err := integer(n)
	if err == nil && v != 1 {
		err = fmt.Errorf("version %d: unknown (this is version 1)", v)
	}
	return err
}

func integer(n *yaml.Node) (int, error) {
	s, err := scalar(n)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s is not a whole number", quote(s))
	}
	return int(v), nil
}

func stringMap(n *yaml.Node) (map[string]string, error) {
	m := map[string]string{}
	err := pairs(n, "match: ", func(name string, _, v *yaml.Node) error {
		s, err := scalar(v)
		if err != nil {
			return fmt.Errorf("match %s: %v", quote(name), err)
		}
		m[name] = s
		return nil
	})
	return m, err
}

func forwardList(n *yaml.Node, forward *[]ZoneForward) error {
	return sequence(n, "forward", func(i int, item *yaml.Node) error {
		var z ZoneForward
		err := mapping(item, "forward: ", []key{
			{"zone", func(n *yaml.Node) error {
				s, err := scalar(n)
				if err == nil {
					z.Zone, err = parseName(s)
				}
				return err
			}},
			{"to", func(n *yaml.Node) error {
				if s, err := scalar(n); err == nil && s == "original" {
					z.Original = true
					return nil
				}
				return each(n, "to", &z.To, ParseServer)
			}},
		})
		if err == nil {
			err = z.check()
		}
		if err != nil {
			return at(item, "dns forward entry %d: %v", i+1, err)
		}
		*forward = append(*forward, z)
		return nil
	})
}
