// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Names is what a policy says about names, as a resolver holds it: the part of
// [Compiled] that the kernel does not see. It is immutable.
type Names struct {
	// Mode decides what the rules are silent about. DNSDisabled: queries are
	// not intercepted, and what is asked all the same is answered and not learned.
	Mode DNSMode
	// Closed refuses every query: block-all.
	Closed bool
	// Audit: what is refused is answered all the same, and counted.
	Audit bool
	// Upstreams to ask; none: the daemon's.
	Upstreams  []netip.AddrPort
	Forward    []ZoneForward
	RefuseWith RefuseCode // RefuseDefault: the configuration decides

	matcher *Matcher
	static  *Policy // whose allow rules let answers point to private addresses
	guard   *Guard  // above them
}

// Grant is why the addresses of a name may be learned, and for what.
type Grant struct {
	// Ports that the addresses are open for; none: every protocol.
	Ports []Ports
	// Private: addresses that answers normally must not point to are learned too.
	Private bool
	// Proxy: the control plane has decided, not a rule.
	Proxy bool
}

func (p *Policy) names(guard *Guard) *Names {
	n := &Names{
		Mode: p.DNS.Mode, Closed: p.Mode == ModeBlockAll, Audit: p.Audit,
		Upstreams: p.DNS.Upstreams, Forward: p.DNS.Forward, RefuseWith: p.DNS.RefuseWith,
		static: p, guard: guard,
	}
	switch p.Mode {
	case ModeAllowlist, ModeDenylist, ModeDisabled:
	case ModeBlockAll:
	default: // an unknown mode is closed
		n.Closed, n.Audit = true, false
	}
	if n.Closed || n.Mode == DNSDisabled || n.Mode == DNSProxy {
		return n
	}
	n.matcher = NewMatcher(p.DNS.Allow, p.DNS.Deny)
	return n
}

// Intercepts is true where queries are answered by Netfence whomever they are
// addressed to.
func (n *Names) Intercepts() bool { return n.Closed || n.Mode != DNSDisabled }

// Decide judges a query for name, in whatever form it is written. In proxy
// mode it refuses: the control plane decides there.
func (n *Names) Decide(name string) NameDecision {
	switch {
	case n.Closed:
		return NameDecision{Reason: "mode block-all"}
	case n.matcher != nil:
		return n.matcher.Decide(n.Mode, name)
	}
	var none Matcher
	return none.Decide(n.Mode, name)
}

// Grant is what an allowed query permits to learn; ok is false for one that
// must teach nothing.
func (n *Names) Grant(d NameDecision) (g Grant, ok bool) {
	if n.Closed || n.Mode == DNSDisabled || d.Action != Allow {
		return Grant{}, false
	}
	return grantOf(d.Rules), true
}

// GrantNow is the grant of a name that was learned before, under the policy as
// it is; ok is false when nothing justifies it any more. byProxy tells who decided then.
func (n *Names) GrantNow(name string, byProxy bool) (g Grant, ok bool) {
	if n.Closed || byProxy != (n.Mode == DNSProxy) {
		return Grant{}, false
	}
	if byProxy {
		return Grant{Proxy: true}, true
	}
	return n.Grant(n.Decide(name))
}

// grantOf unites the rules for one name. A rule without ports covers all others.
func grantOf(rules []*DomainRule) Grant {
	g := Grant{}
	everything := len(rules) == 0
	for _, r := range rules {
		g.Private = g.Private || r.Private
		everything = everything || len(r.Ports) == 0
		g.Ports = append(g.Ports, r.Ports...)
	}
	if everything {
		g.Ports = nil
		return g
	}
	slices.SortFunc(g.Ports, Ports.compare)
	g.Ports = slices.Compact(g.Ports)
	return g
}

// Key is the same for two grants if and only if they permit the same. It is
// kept in pinned maps: its encoding must not change.
func (g Grant) Key() uint64 {
	b := make([]byte, 0, 2+5*len(g.Ports))
	for _, flag := range []bool{g.Private, g.Proxy} {
		if flag {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	for _, p := range g.Ports {
		b = binary.BigEndian.AppendUint16(b, p.First)
		b = binary.BigEndian.AppendUint16(b, p.Last)
		b = append(b, uint8(p.Protocol))
	}
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:8])
}

// Covers reports whether a static allow rule, not outranked by a deny rule,
// speaks of an address on some port: such an address is no surprise in an answer.
func (n *Names) Covers(addr netip.Addr) bool {
	if n.static == nil || n.Closed {
		return false
	}
	addr = addr.Unmap().WithZone("")
	if spoken, covered := covers(n.guard.list(Allow), n.guard.list(Deny), addr); spoken {
		return covered
	}
	_, covered := covers(n.static.Allow, n.static.Deny, addr)
	return covered
}

// Reaches reports whether the static rules and the mode would let a query pass to
// a server over UDP, at a time of the boot clock. In audit that is all that the
// guard does not deny.
func (n *Names) Reaches(server netip.AddrPort, boot time.Duration) bool {
	_, d := n.reach(server, boot)
	return d.Action == Allow
}

// ReachesOverLo reports the same of a server that a cgroup reaches through lo, at an address of the host that it is on.
// There it takes a rule for the server: whatever else passes may be a socket of the workload's own, which would answer
// what it likes.
func (n *Names) ReachesOverLo(server netip.AddrPort, boot time.Duration) bool {
	p, d := n.reach(server, boot)
	return d.Action == Allow && (p.Mode == ModeDisabled || d.Rule != nil && p.Loopback != LoopbackDeny)
}

// reach decides by the policy that it returns.
func (n *Names) reach(server netip.AddrPort, boot time.Duration) (*Policy, Decision) {
	if n.static == nil || n.Closed {
		return &Policy{}, Decision{}
	}
	p := n.static
	if n.Audit {
		p = &Policy{Mode: ModeDisabled}
	}
	return p, p.DecideWith(n.guard, Flow{Addr: server.Addr(), Protocol: UDP, Port: server.Port()}, boot)
}

// covers reports whether the rules speak of an address, and whether the nearest
// that does is an allow rule.
func covers(allow, deny []Rule, addr netip.Addr) (spoken, covered bool) {
	best := -1
	for _, list := range []Action{Deny, Allow} {
		rules := deny
		if list == Allow {
			rules = allow
		}
		for i := range rules {
			r := &rules[i]
			if !r.Prefix.Contains(addr) || r.Deadline != 0 && list == Allow {
				continue // a rule that ends would leave the address learned
			}
			if list == Deny && len(r.Ports) > 0 {
				continue // does not speak of the other ports
			}
			if r.Prefix.Bits() > best {
				best, covered = r.Prefix.Bits(), list == Allow
			}
		}
	}
	return best >= 0, covered
}
