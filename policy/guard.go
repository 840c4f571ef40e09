// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Guard is what the daemon's own configuration says about every attachment:
// address rules above those of any policy and above its mode, out of reach of
// whoever sends policies. Within a guard the longest prefix wins, and deny on a
// tie; what it does not speak of, the policy decides.
//
// A nil Guard says nothing. A Guard is immutable once it has been handed on.
type Guard struct {
	Allow []Rule `json:"allow_cidrs"`
	Deny  []Rule `json:"deny_cidrs"`
}

const (
	// maxGuardRules: a guard is a few lines about a host, not a policy.
	maxGuardRules = 1024
	// maxGuardChain leaves most of a chain to the policies. It also bounds what
	// a guard costs: its port ranges are copied in front of each prefix of a
	// policy that they cover.
	maxGuardChain = 32
)

// Validate reports the first thing in the guard that cannot be put in force,
// as an [*InvalidError] whose field begins with "guard". A guard that is valid
// compiles with [BlockAll].
func (g *Guard) Validate() error {
	if n := g.rules(); n > maxGuardRules {
		return &InvalidError{"guard", fmt.Sprint(n), fmt.Sprintf("%d rules, at most %d", n, maxGuardRules)}
	}
	for _, list := range []Action{Allow, Deny} {
		rules := g.list(list)
		for i := range rules {
			r := &rules[i]
			err := r.check()
			if err == nil && (r.timed() || r.Deadline != 0) {
				err = fmt.Errorf("%s: a guard rule has no lifetime (leave ttl and expires_at out)", r)
			}
			if err != nil {
				return invalidAt("guard."+list.String(), i, r.String(), err)
			}
		}
	}
	_, err := BlockAll().CompileWith(g)
	return err
}

// UnmarshalYAML reads the guard of a configuration: allow and deny, whose
// entries are address rules as a policy file has them.
func (g *Guard) UnmarshalYAML(n *yaml.Node) error {
	var d decoder
	var read Guard
	if err := mapping(n, "", []key{
		{"allow", func(n *yaml.Node) error { return d.ruleList(n, "allow", &read.Allow, nil) }},
		{"deny", func(n *yaml.Node) error { return d.ruleList(n, "deny", &read.Deny, nil) }},
	}); err != nil {
		return err
	}
	if err := read.Validate(); err != nil {
		return at(n, "%v", err)
	}
	*g = read
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (g Guard) MarshalYAML() (any, error) {
	return struct {
		Allow []any `yaml:"allow,omitempty"`
		Deny  []any `yaml:"deny,omitempty"`
	}{rulesYAML(g.Allow), rulesYAML(g.Deny)}, nil
}

// MarshalJSON writes lists that are empty as [].
func (g Guard) MarshalJSON() ([]byte, error) {
	type plain Guard
	out := plain(g)
	out.Allow, out.Deny = printed(out.Allow), printed(out.Deny)
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (g *Guard) UnmarshalJSON(b []byte) error {
	type plain Guard
	var in plain
	if err := strictJSON(b, &in); err != nil {
		return err
	}
	*g = Guard{absent(in.Allow), absent(in.Deny)}
	return nil
}

// String returns the rules as people write them, deny first: "deny
// 169.254.169.254/32, allow 10.0.0.53/32 ports 53".
func (g *Guard) String() string {
	var texts []string
	for _, list := range []Action{Deny, Allow} {
		rules := g.list(list)
		for i := range rules {
			texts = append(texts, list.String()+" "+rules[i].String())
		}
	}
	return strings.Join(texts, ", ")
}

// Empty is true for a guard that says nothing.
func (g *Guard) Empty() bool { return g.rules() == 0 }

func (g *Guard) rules() int {
	if g == nil {
		return 0
	}
	return len(g.Allow) + len(g.Deny)
}

func (g *Guard) list(a Action) []Rule {
	switch {
	case g == nil:
		return nil
	case a == Allow:
		return g.Allow
	}
	return g.Deny
}

// RuleAt finds the rule that a [Clause.Rule] of a guard clause names. It
// returns nil when there is none.
func (g *Guard) RuleAt(n uint32) (rule *Rule, list Action, index int) {
	return ruleAt(g.list(Allow), g.list(Deny), n)
}

// decide returns a Decision without rule when the guard does not speak of f.
func (g *Guard) decide(f Flow, boot time.Duration) Decision {
	d := longest(g.list(Allow), g.list(Deny), f, boot)
	if d.Rule != nil {
		d.Guard = true
		d.Reason = "guard " + d.Reason
	}
	return d
}
