// SPDX-License-Identifier: Apache-2.0

// Package policy says what a workload may send, and where: modes, address and
// domain rules, how they are written, how they decide, and the form in which
// the kernel holds them.
//
// The package is pure: it opens nothing, keeps no state and reads no clock.
// Times are passed in. "boot" is always a [time.Duration] since boot on
// CLOCK_BOOTTIME, so that suspend counts.
//
// [Policy.Decide] is the reference: a linear search by the letter of the
// specification. [Policy.Compile] makes the table that the kernel holds, and
// the two are fuzzed against each other.
package policy

import (
	"net/netip"
	"time"
)

// Policy is what one attachment may send. The zero value blocks everything.
//
// A Policy is immutable once it has been handed on; its edits (With…,
// Without…) and [Policy.Settle] return a copy.
type Policy struct {
	Mode  Mode
	Audit bool // evaluate and count as would-deny, but pass everything
	// Allow and Deny are consulted together: the longest prefix wins, and on
	// a tie deny wins.
	Allow, Deny []Rule
	Replies     ReplyMode
	RepliesUDP  []Ports // local UDP ports whose inbound flows are answered
	Loopback    LoopbackMode
	Source      []Source // source addresses that the workload may use; none: any
	DNS         DNS
}

// Rule is an address rule.
type Rule struct {
	Prefix    netip.Prefix  // masked; IPv4-mapped IPv6 is written as IPv4
	Ports     []Ports       // none: every protocol
	TTL       time.Duration // from the first application; 0: none
	ExpiresAt time.Time     // zero: none
	// Deadline is when the rule ends, by the boot clock. Settle sets it.
	// 0 means never.
	Deadline time.Duration
}

// Source is an address that the workload may send from: a prefix or, when
// Prefix is the zero value, a MAC address.
type Source struct {
	Prefix netip.Prefix
	MAC    [6]byte
}

// DomainRule is a rule about a DNS name.
type DomainRule struct {
	// Domain is in canonical form: lower case, A-labels, no final dot.
	// "*.x" is every name below x at any depth, but not x; "*" is every name.
	// ParseDomain makes the form.
	Domain            string
	IncludeSubdomains bool    // Domain and every name below it
	Ports             []Ports // what its learned addresses are open for; none: every protocol
	Private           bool    // answers may be private addresses
	Force             bool    // Domain may be a public suffix
}

// ZoneForward sends the queries for a zone, and for all names below it, to
// other servers.
type ZoneForward struct {
	Zone     string // canonical, as DomainRule.Domain, without wildcard
	To       []netip.AddrPort
	Original bool // to the server that the workload asked; To is then empty
}

// DNS is the part of a policy that decides names.
type DNS struct {
	Mode        DNSMode
	Allow, Deny []DomainRule
	Upstreams   []netip.AddrPort // none: the daemon's
	RefuseWith  RefuseCode
	Forward     []ZoneForward
}

// BlockAll returns the policy of an attachment that nothing has configured yet.
func BlockAll() *Policy { return &Policy{} }
