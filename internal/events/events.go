// SPDX-License-Identifier: Apache-2.0

// Package events carries what was observed of attachments, dropped packets and
// decided queries, from where it is seen to whoever listens.
package events

import (
	"net/netip"
	"strings"
	"time"
)

// Event is one observation about one attachment. Exactly one of Flow, Decision,
// Incident and Lost is set.
type Event struct {
	Time       time.Time
	Attachment string // id
	Flow       *DeniedFlow
	Decision   *DNSDecision
	Incident   *Incident
	// Lost is how many observations of the attachment nobody will see, because
	// they were more than its rate, or than there was room for.
	Lost uint64
}

// DeniedFlow is a packet that was dropped, or a connection that was refused
// before there was a packet. With WouldDeny it would have been, but for audit.
type DeniedFlow struct {
	Source      netip.AddrPort // zero where it is not known yet
	Destination netip.AddrPort // port 0 where the packet has none
	Protocol    uint8          // IANA
	Length      int            // bytes; 0: refused before there was a packet
	Reason      string         // as the drop counters name it
	Names       []string       // under which the address was learned, the newest first
	Rule        string         // that denied it, as users write it; "": the mode's default
	WouldDeny   bool           // the policy is in audit: it passed
}

// DNSDecision is a query and what became of it. One that rules refuse and that
// the policy's audit has answered all the same is not Allowed, and WouldDeny.
type DNSDecision struct {
	Name    string // lower case, without final dot
	Type    string // "A", "AAAA"
	Allowed bool
	Reason  string       // the rule that decided, or what went wrong
	Learned []netip.Addr // from the answer

	WouldDeny bool
}

// Trouble is why an allowed query for an address got none; "" if it got one, or if there is none to be had. The
// reason has it behind the rule and a colon, which no rule contains.
func (d *DNSDecision) Trouble() string {
	if !d.Allowed || len(d.Learned) > 0 || d.Type != "A" && d.Type != "AAAA" {
		return ""
	}
	_, what, _ := strings.Cut(d.Reason, ": ")
	return what
}

// Incident is something that an operator should look at.
type Incident struct {
	Kind    string // stable: "learned_limit", "names_limit", …
	Message string
}
