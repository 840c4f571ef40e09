// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/netfence/netfence/policy"
)

// explainRecord is the verdict on one packet, in JSON.
type explainRecord struct {
	Packet  string `json:"packet"`
	Verdict string `json:"verdict"`
	// Rule is the one that decides; absent when it is the mode.
	Rule string `json:"rule,omitempty"`
	// Guard: the rule is the guard's.
	Guard  bool   `json:"guard,omitempty"`
	Reason string `json:"reason"`
}

// question is a packet to judge: to an address, or to what a name resolves to.
type question struct {
	flow policy.Flow
	name string // canonical; empty: to flow.Addr
}

// parseQuestion reads ADDRESS:PORT or NAME:PORT, with /tcp or /udp behind it.
func parseQuestion(s string) (question, error) {
	if strings.Contains(s, "://") {
		return question{}, fmt.Errorf("%q is a URL (write the name and the port alone: pypi.org:443)", s)
	}
	text, protocol, given := strings.Cut(s, "/")
	q := question{flow: policy.Flow{Protocol: policy.TCP}}
	switch {
	case !given, protocol == "tcp":
	case protocol == "udp":
		q.flow.Protocol = policy.UDP
	default:
		return q, fmt.Errorf("%q: protocol %q is neither tcp nor udp", s, protocol)
	}
	if addr, err := netip.ParseAddrPort(text); err == nil {
		q.flow.Addr, q.flow.Port = addr.Addr().Unmap(), addr.Port()
		return q, nil
	}
	host, portText, _ := strings.Cut(text, ":")
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || strings.Trim(host, "0123456789.") == "" {
		return q, fmt.Errorf("%q is not an address or a name with a port (write 10.0.9.7:443, [2001:db8::1]:443 or pypi.org:443)", s)
	}
	name, err := policy.ParseDomain(host)
	if err != nil {
		return q, fmt.Errorf("%q: %w", s, err)
	}
	if strings.HasPrefix(name, "*") {
		return q, fmt.Errorf("%q: nobody asks for a wildcard (write a name)", s)
	}
	q.name, q.flow.Port = name, uint16(port)
	return q, nil
}

// explain judges at the instant at which the policy would come into force: no rule has expired. guard is above it; nil:
// none is known.
func (q question) explain(p *policy.Policy, guard *policy.Guard) *explainRecord {
	var r *explainRecord
	if q.name != "" {
		r = q.explainName(p, guard)
	} else {
		r = q.explainAddress(p, guard)
	}
	if p.Audit && !r.Guard && r.Verdict == policy.Deny.String() {
		r.Reason += "; in audit it passes, and is counted"
	}
	return r
}

func (q question) explainAddress(p *policy.Policy, guard *policy.Guard) *explainRecord {
	d := p.DecideWith(guard, q.flow, 0)
	r := &explainRecord{
		Packet:  netip.AddrPortFrom(q.flow.Addr, q.flow.Port).String() + "/" + q.flow.Protocol.String(),
		Verdict: d.Action.String(),
		Guard:   d.Guard,
		Reason:  d.Reason,
	}
	if d.Rule != nil {
		r.Rule = d.Rule.String()
	}
	return r
}

// explainName judges the query first. Of the packet that follows its address is not known here, so address rules are
// not asked: they outrank what is learned.
func (q question) explainName(p *policy.Policy, guard *policy.Guard) *explainRecord {
	d := p.DecideName(q.name)
	r := &explainRecord{
		Packet:  fmt.Sprintf("%s:%d/%s", q.name, q.flow.Port, q.flow.Protocol),
		Verdict: d.Action.String(),
	}
	var ports []policy.Ports
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
	case d.Action == policy.Deny:
		r.Reason = "the name is refused: " + d.Reason
	case p.Mode != policy.ModeAllowlist:
		r.Reason = fmt.Sprintf("the name is answered (%s); mode %s passes the packet %s", d.Reason, p.Mode, unlessDenied)
		if p.Mode == policy.ModeDisabled {
			r.Reason = fmt.Sprintf("the name is answered (%s); mode %s passes every packet", d.Reason, p.Mode)
			if !guard.Empty() {
				r.Reason += " that the guard does not deny"
			}
		}
	case p.DNS.Mode == policy.DNSDisabled:
		r.Verdict = policy.Deny.String()
		r.Reason = "dns mode disabled: nothing is learned from an answer, so the packet passes only if a rule allows its address"
	case everything:
		r.Reason = fmt.Sprintf("the name is answered and its addresses learned (%s); the packet passes %s", d.Reason, unlessDenied)
	case slices.ContainsFunc(ports, q.isFor):
		r.Reason = fmt.Sprintf("the name is answered and its addresses learned for ports %s (%s); the packet passes %s",
			joined(ports), d.Reason, unlessDenied)
	default:
		r.Verdict = policy.Deny.String()
		r.Reason = fmt.Sprintf("the name is answered, but its addresses are learned for ports %s only (%s); the packet passes only if a rule allows its address",
			joined(ports), d.Reason)
	}
	return r
}

func (q question) isFor(p policy.Ports) bool {
	return p.First <= q.flow.Port && q.flow.Port <= p.Last && (p.Protocol == policy.AnyProtocol || p.Protocol == q.flow.Protocol)
}

func joined[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return strings.Join(texts, ", ")
}
