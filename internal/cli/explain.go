// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/netfence/netfence/policy"

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

func explain(p *policy.Policy, guard *policy.Guard, packet policy.Packet) *explainRecord {
	e := p.Explain(guard, packet)
	return &explainRecord{Packet: packet.String(), Verdict: e.Action.String(), Rule: e.Rule, Guard: e.Guard, Reason: e.Reason}
}
