// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"time"
)

// Compiled is a policy as the kernel holds it.
type Compiled struct {
	Mode     Mode
	Audit    bool
	Replies  bool         // in effect: never in block-all, not needed in disabled
	Loopback LoopbackMode // in effect: deny in block-all, allow in disabled
	Table    *Table       // nil: no rules, or a mode that does not ask them
}

// Table holds the address rules for a longest-prefix lookup. The longest
// matching entry is the whole answer: its chain holds its own clauses and then,
// by Next, those of the prefixes that cover it.
//
// There is always an entry ::ffff:0:0/96, so that ::/0 and other IPv6 prefixes
// shorter than that never cover IPv4.
type Table struct {
	Entries []Entry  // by address, then by length; no two alike
	Clauses []Clause // index 0 is unused
}

// Entry is one prefix of the table.
type Entry struct {
	Prefix netip.Prefix // always in 128-bit form: 10.0.0.0/8 is ::ffff:10.0.0.0/104
	Clause Clause       // the first of the chain, inline
}

// Clause is one port range, or all ports, of one rule.
type Clause struct {
	Deadline    time.Duration // boot clock; 0: never
	First, Last uint16        // 0, 0 when Match has no ports
	Match       Match
	Verdict     ClauseVerdict
	Next        uint32 // index into Table.Clauses; 0: the end, no rule matched
	Rule        uint32 // 1-based index into Allow followed by Deny; 0 with VerdictNone
}

// Match says which protocols a clause is about. The numbers are the kernel's.
type Match uint8

const (
	MatchAny    Match = 0 // every protocol, and fragments
	MatchTCP    Match = 6
	MatchUDP    Match = 17
	MatchTCPUDP Match = 255
)

// ClauseVerdict is what a matching clause says. The numbers are the kernel's.
type ClauseVerdict uint8

const (
	VerdictDeny  ClauseVerdict = 0
	VerdictAllow ClauseVerdict = 1
	VerdictNone  ClauseVerdict = 2 // no rule: ends the chain
)

// MaxChain bounds the clauses that the kernel walks for one packet.
const MaxChain = 128
