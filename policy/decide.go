// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"time"
)

// Flow is what a packet is judged by.
type Flow struct {
	Addr     netip.Addr // destination
	Protocol Protocol
	Port     uint16 // destination port
	Portless bool   // a non-first fragment, or a protocol without ports

	portsOnly bool // a rule without ports does not allow it
}

func (f Flow) String() string {
	s := f.Addr.String()
	if f.Portless || f.Protocol != TCP && f.Protocol != UDP {
		return fmt.Sprintf("%s protocol %s", s, f.Protocol)
	}
	return fmt.Sprintf("%s port %d/%s", s, f.Port, f.Protocol)
}

// Decision is a verdict and where it comes from.
type Decision struct {
	Action Action
	Rule   *Rule  // nil: the mode's default
	List   Action // the list in which Rule stands
	Index  int    // place of Rule in its list, from 0
	Guard  bool   // the list is the guard's
	Reason string // for people
}

// Decide judges a flow by the policy alone; see [Policy.DecideWith].
func (p *Policy) Decide(f Flow, boot time.Duration) Decision { return p.DecideWith(nil, f, boot) }

// DecideWith judges a flow by the static rules at a time of the boot clock, with
// a guard (nil: none) above them: by the letter of the specification, rule by
// rule. Learned addresses and reply flows are not the policy's and are not
// considered; nor is audit, which lets pass what is denied here but for the
// guard's denials.
//
// An IPv6 address that embeds an IPv4 address passes only if both would. What
// the guard denies of either, it denies, whatever the policy says of the other.
func (p *Policy) DecideWith(g *Guard, f Flow, boot time.Duration) Decision {
	f.Addr = f.Addr.Unmap().WithZone("")
	outer := p.decide(g, f, boot)
	var ok bool
	if f.Addr, ok = embedded(f.Addr); !ok {
		return outer
	}
	inner := p.decide(g, f, boot)
	if inner.Action == Allow || outer.Action == Deny && (outer.Guard || !inner.Guard) {
		return outer
	}
	inner.Reason = fmt.Sprintf("embedded IPv4 address %s: %s", f.Addr, inner.Reason)
	return inner
}

func (p *Policy) decide(g *Guard, f Flow, boot time.Duration) Decision {
	if !f.Addr.IsValid() {
		return Decision{Action: Deny, Reason: "no address"}
	}
	if d := g.decide(f, boot); d.Rule != nil {
		return d
	}
	if p.Mode != ModeAllowlist && p.Mode != ModeDenylist {
		return Decision{Action: p.Mode.fallback(), Reason: "mode " + p.Mode.String()}
	}
	if d := longest(p.Allow, p.Deny, f, boot); d.Rule != nil {
		return d
	}
	return Decision{Action: p.Mode.fallback(), Reason: fmt.Sprintf("mode %s, no rule matches %s", p.Mode, f)}
}

// longest finds the rule with the longest prefix of those that speak of f.
func longest(allow, deny []Rule, f Flow, boot time.Duration) Decision {
	var best Decision
	for _, list := range []Action{Deny, Allow} { // deny first: it wins a tie
		rules := deny
		if list == Allow {
			rules = allow
		}
		for i := range rules {
			r := &rules[i]
			if f.portsOnly && list == Allow && len(r.Ports) == 0 || !r.matches(f, boot) || best.Rule != nil && r.Prefix.Bits() <= best.Rule.Prefix.Bits() {
				continue
			}
			best = Decision{Action: list, Rule: r, List: list, Index: i}
		}
	}
	if best.Rule != nil {
		best.Reason = fmt.Sprintf("%s rule %d: %s", best.List, best.Index+1, best.Rule)
	}
	return best
}

// fallback is what the mode does when no rule matches.
func (m Mode) fallback() Action {
	if m == ModeDenylist || m == ModeDisabled {
		return Allow
	}
	return Deny
}

func (p *Policy) list(a Action) []Rule {
	if a == Allow {
		return p.Allow
	}
	return p.Deny
}

// RuleAt finds the rule that a [Clause.Rule] names. It returns nil when there
// is none.
func (p *Policy) RuleAt(n uint32) (rule *Rule, list Action, index int) {
	return ruleAt(p.Allow, p.Deny, n)
}

func ruleAt(allow, deny []Rule, n uint32) (rule *Rule, list Action, index int) {
	i := int(n) - 1
	switch {
	case i < 0 || i >= len(allow)+len(deny):
		return nil, Deny, 0
	case i < len(allow):
		return &allow[i], Allow, i
	}
	i -= len(allow)
	return &deny[i], Deny, i
}

func (r *Rule) matches(f Flow, boot time.Duration) bool {
	if r.expired(boot) || !r.Prefix.Contains(f.Addr) {
		return false
	}
	if len(r.Ports) == 0 {
		return true
	}
	if f.Portless {
		return false
	}
	for _, p := range r.Ports {
		if p.contains(f.Protocol, f.Port) {
			return true
		}
	}
	return false
}

func (r *Rule) expired(boot time.Duration) bool { return r.Deadline != 0 && boot >= r.Deadline }

var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixTo4 = netip.MustParsePrefix("2002::/16")    // RFC 3056
	compat = netip.MustParsePrefix("::/96")        // RFC 4291 section 2.5.5.1
)

// embedded returns the IPv4 address to which a translator or tunnel on the way
// would send a packet for addr. The unspecified and the loopback address lie
// in ::/96 but embed nothing.
func embedded(addr netip.Addr) (netip.Addr, bool) {
	if !addr.Is6() || addr == netip.IPv6Unspecified() || addr == netip.IPv6Loopback() {
		return netip.Addr{}, false
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr), compat.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:])), true
	case sixTo4.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}
