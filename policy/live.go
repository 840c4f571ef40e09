// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Live is what decides about packets beside a policy that is in force.
type Live struct {
	Guard *Guard        // above the policy; nil: none
	Boot  time.Duration // the boot clock
	// Cgroup: the packet is a cgroup's, which shares lo with the host; else it comes through an interface.
	Cgroup bool
	// Opened lists what names have opened, and holds still.
	Opened []Opened
}

// Opened is an address that names have opened, for one set of ports.
type Opened struct {
	Addr      netip.Addr
	Names     []string      // the newest first
	Ports     []Ports       // none: every protocol
	Remaining time.Duration // until no new flow passes
}

// ParseDestination reads what ParsePacket does, and an address or a name alone:
// a packet without ports, or a name whatever the port.
func ParseDestination(s string) (Packet, error) {
	q := Packet{Flow: Flow{Protocol: TCP, Portless: true}}
	if addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil && addr.Zone() == "" {
		q.Flow.Addr = addr.Unmap()
		return q, nil
	}
	if strings.ContainsAny(s, ":/") {
		return ParsePacket(s)
	}
	if strings.Trim(s, "0123456789.") == "" {
		return q, fmt.Errorf("%q is neither an address nor a name", s)
	}
	name, err := ParseDomain(s)
	if err != nil {
		return q, fmt.Errorf("%q: %w", s, err)
	}
	if strings.HasPrefix(name, "*") {
		return q, fmt.Errorf("%q: nobody asks for a wildcard (write a name)", s)
	}
	q.Name = name
	return q, nil
}

// ExplainLive judges a packet by the policy as it is in force: rules may have
// expired, and names may have opened addresses. Action is what becomes of the
// packet: in audit it passes whatever the rules say, unless the guard denies it.
// Answers to flows that were opened from outside are not considered, nor are
// attachments around this one, each of which must permit the packet, too.
func (p *Policy) ExplainLive(l Live, q Packet) Explanation {
	var r Explanation
	if q.Name != "" {
		r = p.explainLiveName(l, q)
	} else {
		q.Flow.Addr = q.Flow.Addr.Unmap().WithZone("")
		r = p.explainLiveAddress(l, q.Flow)
	}
	if p.Audit && !r.Guard && r.Action == Deny {
		r.Action = Allow
		r.Reason += "; in audit it passes, and is counted"
	}
	return r
}

// explainLiveAddress is in the order in which the kernel asks.
func (p *Policy) explainLiveAddress(l Live, f Flow) Explanation {
	intercepts := p.Mode == ModeBlockAll || p.DNS.Mode != DNSDisabled
	if intercepts && !f.Portless && f.Port == 53 {
		return Explanation{Action: Deny, Reason: "no query reaches the server that it is addressed to: it is answered by name (explain a name)"}
	}
	f.portsOnly = p.bypassesNames(f)
	if f.Addr.IsLoopback() && p.Mode != ModeDisabled {
		return p.explainLoopback(l, f)
	}
	outer := p.judge(l, f)
	inner, ok := embedded(f.Addr)
	if !ok || outer.Action == Deny && outer.Rule != "" && outer.Guard {
		return outer
	}
	f.Addr = inner
	inside := p.judge(l, f)
	if inside.Action == Allow || outer.Action == Deny && !inside.Guard {
		return outer
	}
	inside.Reason = fmt.Sprintf("embedded IPv4 address %s: %s", inner, inside.Reason)
	return inside
}

// judge asks the guard, the rules, the mode, and in an allowlist then what names have opened.
func (p *Policy) judge(l Live, f Flow) Explanation {
	d := p.decide(l.Guard, f, l.Boot)
	r := explained(d)
	switch {
	case d.Rule != nil, p.Mode != ModeAllowlist && p.Mode != ModeDenylist:
		return r
	case f.portsOnly:
		return pastNames(f)
	case p.Mode == ModeDenylist || p.DNS.Mode == DNSDisabled:
		return r
	}
	for _, o := range l.Opened {
		switch {
		case o.Addr.Unmap() != f.Addr:
		case o.open(f):
			name := NameMatch{}
			if d := p.DecideName(o.Names[0]); d.Action == Allow {
				name = d.NameMatch
			}
			r = Explanation{Action: Allow, List: Allow, Rule: rulesText(name.Rules)}
			r.Reason = "learned from " + o.text()
			if r.Rule != "" {
				r.Reason += " by allow rule " + r.Rule
			}
			return r
		default:
			r.Reason += "; learned from " + o.text()
		}
	}
	return r
}

// explainLoopback judges a loopback address: only a cgroup's packets leave by lo.
func (p *Policy) explainLoopback(l Live, f Flow) Explanation {
	denied := Explanation{Action: Deny}
	d := p.decide(l.Guard, f, l.Boot)
	switch {
	case d.Guard:
		return explained(d)
	case !l.Cgroup:
		denied.Reason = "a loopback address, which is reached by lo only"
	case p.Mode == ModeBlockAll:
		return explained(d)
	case p.Loopback == LoopbackDeny:
		denied.Reason = "loopback deny"
	case d.Rule != nil:
		return explained(d)
	case p.Loopback == LoopbackAllow && !f.portsOnly:
		return Explanation{Action: Allow, Reason: "loopback allow"}
	default:
		denied.Reason = "loopback own: passes only to sockets of the attachment itself"
	}
	return denied
}

// maxShown addresses of a name are in the text.
const maxShown = 8

// explainLiveName adds what the name has opened by now to what the policy says of it.
func (p *Policy) explainLiveName(l Live, q Packet) Explanation {
	r := p.explainName(l.Guard, q)
	asked := p.DNS.Mode == DNSProxy && (p.Mode == ModeAllowlist || p.Mode == ModeDenylist)
	if asked {
		r = Explanation{Action: Deny, Reason: "dns mode proxy: the control plane decides each query"}
	}
	var texts []string
	n := 0
	for _, o := range l.Opened {
		if !slices.Contains(o.Names, q.Name) {
			continue
		}
		if n++; n > maxShown {
			continue
		}
		f := q.Flow
		f.Addr = o.Addr.Unmap()
		if f.Portless && len(o.Ports) > 0 {
			f.Portless, f.Port, f.Protocol = false, o.Ports[0].First, max(o.Ports[0].Protocol, TCP)
		}
		d := p.judge(l, f)
		text := o.Addr.String() + " " + o.until()
		if d.Action == Deny {
			text += ", denied: " + d.Reason
		} else if asked {
			r.Action = Allow
		}
		texts = append(texts, text)
	}
	if n > maxShown {
		texts = append(texts, fmt.Sprintf("and %d more", n-maxShown))
	}
	if len(texts) > 0 {
		r.Reason += "; learned: " + strings.Join(texts, "; ")
	}
	return r
}

func (o *Opened) open(f Flow) bool {
	if len(o.Ports) == 0 {
		return true
	}
	return !f.Portless && slices.ContainsFunc(o.Ports, func(p Ports) bool { return p.contains(f.Protocol, f.Port) })
}

func (o *Opened) until() string {
	text := ""
	if len(o.Ports) > 0 {
		text = "for ports " + listed(o.Ports) + " "
	}
	return text + "(" + o.Remaining.Round(time.Second).String() + " left)"
}

func (o *Opened) text() string {
	return strings.Join(o.Names[:min(len(o.Names), maxShown)], ", ") + " " + o.until()
}

// bypassesNames is true for what only a rule that names its port lets pass.
func (p *Policy) bypassesNames(f Flow) bool {
	return (p.Mode == ModeAllowlist || p.Mode == ModeDenylist) && p.DNS.Mode != DNSDisabled && resolvesNames(f)
}

func pastNames(f Flow) Explanation {
	return Explanation{Action: Deny, Reason: fmt.Sprintf("names could be resolved past the filter on port %d: only a rule that names the port lets it pass", f.Port)}
}

// resolvesNames is as the kernel has it: DNS over TLS and QUIC (RFC 7858, RFC 9250), multicast DNS (RFC 6762), LLMNR (RFC
// 4795) and NetBIOS names (RFC 1002).
func resolvesNames(f Flow) bool {
	if f.Portless {
		return false
	}
	switch f.Protocol {
	case TCP:
		return f.Port == 853 || f.Port == 5355
	case UDP:
		return f.Port == 853 || f.Port == 5355 || f.Port == 5353 || f.Port == 137
	}
	return false
}

func rulesText(rules []*DomainRule) string {
	texts := make([]string, len(rules))
	for i, r := range rules {
		texts[i] = r.String()
	}
	return strings.Join(texts, ", ")
}
