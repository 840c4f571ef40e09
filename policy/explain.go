// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Packet is a packet to judge: to an address, or to what a name resolves to.
type Packet struct {
	Flow Flow
	Name string // canonical; empty: to Flow.Addr
}

func (q Packet) String() string {
	switch {
	case q.Name != "" && q.Flow.Portless:
		return q.Name
	case q.Flow.Portless:
		return q.Flow.Addr.String()
	case q.Name != "":
		return fmt.Sprintf("%s:%d/%s", q.Name, q.Flow.Port, q.Flow.Protocol)
	}
	return netip.AddrPortFrom(q.Flow.Addr, q.Flow.Port).String() + "/" + q.Flow.Protocol.String()
}

// Explanation is the verdict on a packet, and where it comes from.
type Explanation struct {
	Action Action
	Rule   string // that decides; empty when it is the mode
	List   Action // the list in which Rule stands
	Guard  bool   // the rule is the guard's
	Reason string // for people
}

// ParsePacket reads ADDRESS:PORT or NAME:PORT, with /tcp or /udp behind it.
func ParsePacket(s string) (Packet, error) {
	if strings.Contains(s, "://") {
		return Packet{}, fmt.Errorf("%q is a URL (write the name and the port alone: pypi.org:443)", s)
	}
	text, protocol, given := strings.Cut(s, "/")
	q := Packet{Flow: Flow{Protocol: TCP}}
	switch {
	case !given, protocol == "tcp":
	case protocol == "udp":
		q.Flow.Protocol = UDP
	default:
		return q, fmt.Errorf("%q: protocol %q is neither tcp nor udp", s, protocol)
	}
	if addr, err := netip.ParseAddrPort(text); err == nil {
		q.Flow.Addr, q.Flow.Port = addr.Addr().Unmap(), addr.Port()
		return q, nil
	}
	host, portText, _ := strings.Cut(text, ":")
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || strings.Trim(host, "0123456789.") == "" {
		return q, fmt.Errorf("%q is not an address or a name with a port (write 10.0.9.7:443, [2001:db8::1]:443 or pypi.org:443)", s)
	}
	name, err := ParseDomain(host)
	if err != nil {
		return q, fmt.Errorf("%q: %w", s, err)
	}
	if strings.HasPrefix(name, "*") {
		return q, fmt.Errorf("%q: nobody asks for a wildcard (write a name)", s)
	}
	q.Name, q.Flow.Port = name, uint16(port)
	return q, nil
}

// Explain judges at the instant at which the policy would come into force: no rule has expired. guard is above it; nil:
// none is known.
func (p *Policy) Explain(guard *Guard, q Packet) Explanation {
	var r Explanation
	if q.Name != "" {
		r = p.explainName(guard, q)
	} else {
		r = p.explainAddress(guard, q)
	}
	if p.Audit && !r.Guard && r.Action == Deny {
		r.Reason += "; in audit it passes, and is counted"
	}
	return r
}

func (p *Policy) explainAddress(guard *Guard, q Packet) Explanation {
	q.Flow.portsOnly = p.bypassesNames(q.Flow)
	d := p.DecideWith(guard, q.Flow, 0)
	if d.Rule == nil && q.Flow.portsOnly {
		return pastNames(q.Flow)
	}
	return explained(d)
}

func explained(d Decision) Explanation {
	r := Explanation{Action: d.Action, Guard: d.Guard, Reason: d.Reason}
	if d.Rule != nil {
		r.Rule, r.List = d.Rule.String(), d.List
	}
	return r
}

// explainName judges the query first. Of the packet that follows its address is not known here, so address rules are
// not asked: they outrank what is learned.
func (p *Policy) explainName(guard *Guard, q Packet) Explanation {
	d := p.DecideName(q.Name)
	r := Explanation{Action: d.Action, List: d.List}
	var ports []Ports
	everything := len(d.Rules) == 0
	for i, rule := range d.Rules {
		if i > 0 {
			r.Rule += ", "
		}
		r.Rule += rule.String()
		everything = everything || len(rule.Ports) == 0
		ports = append(ports, rule.Ports...)
	}
	const unlessDenied = "unless a rule denies its address"
	switch {
	case d.Action == Deny:
		r.Reason = "the name is refused: " + d.Reason
	case p.Mode != ModeAllowlist:
		r.Reason = fmt.Sprintf("the name is answered (%s); mode %s passes the packet %s", d.Reason, p.Mode, unlessDenied)
		if p.Mode == ModeDisabled {
			r.Reason = fmt.Sprintf("the name is answered (%s); mode %s passes every packet", d.Reason, p.Mode)
			if !guard.Empty() {
				r.Reason += " that the guard does not deny"
			}
		}
	case p.DNS.Mode == DNSDisabled:
		r.Action = Deny
		r.Reason = "dns mode disabled: nothing is learned from an answer, so the packet passes only if a rule allows its address"
	case everything:
		r.Reason = fmt.Sprintf("the name is answered and its addresses learned (%s); the packet passes %s", d.Reason, unlessDenied)
	case q.Flow.Portless:
		r.Reason = fmt.Sprintf("the name is answered and its addresses learned for ports %s (%s)", listed(ports), d.Reason)
	case slices.ContainsFunc(ports, q.isFor):
		r.Reason = fmt.Sprintf("the name is answered and its addresses learned for ports %s (%s); the packet passes %s",
			listed(ports), d.Reason, unlessDenied)
	default:
		r.Action = Deny
		r.Reason = fmt.Sprintf("the name is answered, but its addresses are learned for ports %s only (%s); the packet passes only if a rule allows its address",
			listed(ports), d.Reason)
	}
	return r
}

func (q Packet) isFor(p Ports) bool {
	return p.First <= q.Flow.Port && q.Flow.Port <= p.Last && (p.Protocol == AnyProtocol || p.Protocol == q.Flow.Protocol)
}

func listed(ports []Ports) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}
