// SPDX-License-Identifier: Apache-2.0

package policy

import "net/netip"

// Flow is what a packet is judged by.
type Flow struct {
	Addr     netip.Addr // destination
	Protocol Protocol
	Port     uint16 // destination port
	Portless bool   // a non-first fragment, or a protocol without ports
}

// Decision is a verdict and where it comes from.
type Decision struct {
	Action Action
	Rule   *Rule  // nil: the mode's default
	List   Action // the list in which Rule stands
	Index  int    // place of Rule in its list, from 0
	Reason string // for people
}
