// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Compiled is a policy, with the daemon's guard above it, as the kernel holds it.
type Compiled struct {
	Mode Mode
	// Audit: what the policy denies passes, and is counted. The guard's
	// denials are denials all the same.
	Audit    bool
	Replies  bool         // in effect: never in block-all, not needed in disabled
	Loopback LoopbackMode // in effect: deny in block-all, allow in disabled
	// RepliesUDP: Table.Clauses[0] begins the chain of the workload's UDP ports
	// whose inbound flows are answered.
	RepliesUDP bool
	// Configures: block-all, but the guard lets something pass, which is of no use
	// to who can not find its neighbours. Interfaces may send what that takes.
	Configures bool
	// Table is asked before the mode, in every mode. In block-all and disabled
	// it holds the guard's rules only. nil: no rules.
	Table *Table
	Names *Names // for the resolver; never nil

	Rulebook
}

// Rulebook is what the clauses of a Compiled were made from.
type Rulebook struct {
	policy *Policy
	guard  *Guard
}

// RuleText names the rule of a [Clause.Rule] as people write it, "deny
// 10.0.9.0/24" or "guard deny 169.254.0.0/16"; it is empty when there is none.
func (b Rulebook) RuleText(n uint32, guard bool) string {
	rule, list, _ := b.policy.RuleAt(n)
	above := ""
	if guard {
		rule, list, _ = b.guard.RuleAt(n)
		above = "guard "
	}
	if rule == nil {
		return ""
	}
	return above + list.String() + " " + rule.String()
}

// Table holds the address rules for a longest-prefix lookup. The longest
// matching entry is the whole answer: its chain holds its own clauses and then,
// by Next, those of the prefixes that cover it. What the guard says of the
// prefix, of its own and of those that cover it, stands before all of the policy's.
//
// There is always an entry ::ffff:0:0/96, so that ::/0 and other IPv6 prefixes
// shorter than that never cover IPv4.
type Table struct {
	Entries []Entry // by address, then by length; no two alike
	// Clauses are what the entries continue with. Index 0 is no continuation:
	// with Compiled.RepliesUDP a chain of port ranges begins there, each
	// MatchUDP and VerdictAllow; else it is zero.
	Clauses []Clause
	Sources []Source // what the workload may send from; none: any source
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
	Guard       bool   // of the guard, and so is Rule
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

// Decide is what the kernel does with a flow; see [Policy.DecideWith] for what
// it means. rule is that of the deciding clause, the guard's if guard is true,
// or 0 for the mode's default.
func (c *Compiled) Decide(f Flow, boot time.Duration) (action Action, rule uint32, guard bool) {
	f.Addr = f.Addr.Unmap().WithZone("")
	action, rule, guard = c.decide(f, boot)
	inner, ok := embedded(f.Addr)
	if !ok || action == Deny && guard {
		return action, rule, guard
	}
	f.Addr = inner
	if a, r, g := c.decide(f, boot); a == Deny && (g || action == Allow) {
		return a, r, g
	}
	return action, rule, guard
}

func (c *Compiled) decide(f Flow, boot time.Duration) (action Action, rule uint32, guard bool) {
	if !f.Addr.IsValid() {
		return Deny, 0, false
	}
	switch clause := c.Table.Decide(f, boot); clause.Verdict {
	case VerdictAllow:
		return Allow, clause.Rule, clause.Guard
	case VerdictDeny:
		return Deny, clause.Rule, clause.Guard
	}
	return c.Mode.fallback(), 0, false
}

// Decide looks up one address, without regard to an embedded one, as the
// kernel does: longest prefix, then along the chain to the first clause that
// is in force and matches, which it returns. Without one the clause is
// VerdictNone. A nil table has no rules.
func (t *Table) Decide(f Flow, boot time.Duration) Clause {
	entry := t.lookup(netip.AddrFrom16(f.Addr.As16()))
	if entry == nil {
		return Clause{Verdict: VerdictNone}
	}
	clause := entry.Clause
	for range MaxChain {
		if clause.matches(f, boot) {
			return clause
		}
		if clause.Next == 0 {
			return Clause{Verdict: VerdictNone}
		}
		clause = t.Clauses[clause.Next]
	}
	return Clause{} // deny: Compile makes no such chain; closed, as in the kernel
}

func (t *Table) lookup(addr netip.Addr) *Entry {
	if t == nil {
		return nil
	}
	for bits := addr.BitLen(); bits >= 0; bits-- {
		i, found := slices.BinarySearchFunc(t.Entries, netip.PrefixFrom(addr, bits).Masked(),
			func(e Entry, p netip.Prefix) int {
				return cmp.Or(e.Prefix.Addr().Compare(p.Addr()), e.Prefix.Bits()-p.Bits())
			})
		if found {
			return &t.Entries[i]
		}
	}
	return nil
}

func (c *Clause) matches(f Flow, boot time.Duration) bool {
	if c.Deadline != 0 && boot >= c.Deadline {
		return false
	}
	if c.Match == MatchAny {
		return true
	}
	if f.Portless || f.Port < c.First || f.Port > c.Last {
		return false
	}
	if c.Match == MatchTCPUDP {
		return f.Protocol == TCP || f.Protocol == UDP
	}
	return uint8(c.Match) == uint8(f.Protocol)
}

// Hash names the content: two tables are equal, field by field, if and only if
// their hashes are. A nil table has a hash of its own.
func (t *Table) Hash() [sha256.Size]byte {
	if t == nil {
		return sha256.Sum256(nil)
	}
	// Fixed-size records behind their number: no two tables have one encoding.
	const entrySize, clauseSize, sourceSize = 17, 23, 23
	b := make([]byte, 0, 16+len(t.Entries)*(entrySize+clauseSize)+len(t.Clauses)*clauseSize+len(t.Sources)*sourceSize)
	b = binary.BigEndian.AppendUint64(b, uint64(len(t.Entries)))
	for i := range t.Entries {
		b = appendPrefix(b, t.Entries[i].Prefix)
		b = t.Entries[i].Clause.append(b)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(len(t.Clauses)))
	for i := range t.Clauses {
		b = t.Clauses[i].append(b)
	}
	for i := range t.Sources {
		b = appendPrefix(b, to128(t.Sources[i].Prefix))
		b = append(b, t.Sources[i].MAC[:]...)
	}
	return sha256.Sum256(b)
}

// appendPrefix writes the length of no prefix as 255.
func appendPrefix(b []byte, p netip.Prefix) []byte {
	var addr [16]byte
	if p.IsValid() {
		addr = p.Addr().As16()
	}
	return append(append(b, addr[:]...), uint8(p.Bits()))
}

func (c *Clause) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(c.Deadline))
	b = binary.BigEndian.AppendUint16(b, c.First)
	b = binary.BigEndian.AppendUint16(b, c.Last)
	b = append(b, uint8(c.Match), uint8(c.Verdict))
	b = binary.BigEndian.AppendUint32(b, c.Next)
	b = binary.BigEndian.AppendUint32(b, c.Rule)
	if c.Guard {
		return append(b, 1)
	}
	return append(b, 0)
}
