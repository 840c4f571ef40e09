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
	Mode Mode `json:"mode"`
	// Audit: evaluate and count as would-deny, but pass everything.
	Audit bool `json:"audit"`
	// Allow and Deny are consulted together: the longest prefix wins, and on
	// a tie deny wins.
	Allow   []Rule    `json:"allow_cidrs"`
	Deny    []Rule    `json:"deny_cidrs"`
	Replies ReplyMode `json:"replies"`
	// RepliesUDP are the workload's UDP ports whose inbound flows are answered.
	RepliesUDP []Ports      `json:"replies_udp"`
	Loopback   LoopbackMode `json:"loopback"`
	// Source lists what the workload may send from; none: any address.
	Source []Source `json:"source"`
	DNS    DNS      `json:"dns"`
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
	Domain string `json:"domain"`
	// IncludeSubdomains adds every name below Domain.
	IncludeSubdomains bool `json:"include_subdomains,omitempty"`
	// Ports are what its learned addresses are open for; none: every protocol.
	Ports []Ports `json:"ports,omitempty"`
	// Private: answers may be private addresses.
	Private bool `json:"private,omitempty"`
	// Force: Domain may be a public suffix.
	Force bool `json:"force,omitempty"`
}

// ZoneForward sends the queries for a zone, and for all names below it, to
// other servers.
type ZoneForward struct {
	// Zone is canonical as DomainRule.Domain is, without wildcard.
	Zone string           `json:"zone"`
	To   []netip.AddrPort `json:"to,omitempty"`
	// Original: to the server that the workload asked. To is then empty.
	Original bool `json:"original,omitempty"`
}

// DNS is the part of a policy that decides names.
type DNS struct {
	Mode  DNSMode      `json:"mode"`
	Allow []DomainRule `json:"allow_domains"`
	Deny  []DomainRule `json:"deny_domains"`
	// Upstreams are the servers to ask; none: the daemon's.
	Upstreams  []netip.AddrPort `json:"upstream_servers"`
	RefuseWith RefuseCode       `json:"refuse_with"`
	Forward    []ZoneForward    `json:"forward"`
}

// BlockAll returns the policy of an attachment that nothing has configured yet.
func BlockAll() *Policy { return &Policy{} }
