// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/netfence/netfence/policy"
)

// explainRecord is the verdict on one packet, in JSON.
type explainRecord struct {
	Packet  string `json:"packet"`
	Verdict string `json:"verdict"`
	// Rule is the one that decides; absent when it is the mode.
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason"`
}

// parseFlow reads ADDRESS:PORT, with /tcp or /udp behind it.
func parseFlow(s string) (policy.Flow, error) {
	text, protocol, given := strings.Cut(s, "/")
	f := policy.Flow{Protocol: policy.TCP}
	switch {
	case !given, protocol == "tcp":
	case protocol == "udp":
		f.Protocol = policy.UDP
	default:
		return f, fmt.Errorf("%q: protocol %q is neither tcp nor udp", s, protocol)
	}
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return f, fmt.Errorf("%q is not an address and port (write 10.0.9.7:443 or [2001:db8::1]:443; names are not decided yet)", s)
	}
	f.Addr, f.Port = addr.Addr().Unmap(), addr.Port()
	return f, nil
}

// explainFlow judges at the instant at which the policy would come into force: no rule has expired.
func explainFlow(p *policy.Policy, f policy.Flow) *explainRecord {
	d := p.Decide(f, 0)
	r := &explainRecord{
		Packet:  netip.AddrPortFrom(f.Addr, f.Port).String() + "/" + f.Protocol.String(),
		Verdict: d.Action.String(),
		Reason:  d.Reason,
	}
	if d.Rule != nil {
		r.Rule = d.Rule.String()
	}
	return r
}
