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

// Compiled is a policy as the kernel holds it.
type Compiled struct {
	Mode     Mode
	Replies  bool         // in effect: never in block-all, not needed in disabled
	Loopback LoopbackMode // in effect: deny in block-all, allow in disabled
	Table    *Table       // nil: no rules, or a mode that does not ask them
	Names    *Names       // for the resolver; never nil
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

// Decide is what the kernel does with a flow; see [Policy.Decide] for what it
// means. rule is that of the deciding clause, or 0 for the mode's default.
func (c *Compiled) Decide(f Flow, boot time.Duration) (action Action, rule uint32) {
	f.Addr = f.Addr.Unmap().WithZone("")
	if action, rule = c.decide(f, boot); action == Deny {
		return action, rule
	}
	if inner, ok := embedded(f.Addr); ok {
		f.Addr = inner
		if action, innerRule := c.decide(f, boot); action == Deny {
			return action, innerRule
		}
	}
	return action, rule
}

func (c *Compiled) decide(f Flow, boot time.Duration) (Action, uint32) {
	if !f.Addr.IsValid() {
		return Deny, 0
	}
	switch verdict, rule := c.Table.Decide(f, boot); verdict {
	case VerdictAllow:
		return Allow, rule
	case VerdictDeny:
		return Deny, rule
	}
	return c.Mode.fallback(), 0
}

// Decide looks up one address, without regard to an embedded one, as the
// kernel does: longest prefix, then along the chain to the first clause that
// is in force and matches. A nil table has no rules.
func (t *Table) Decide(f Flow, boot time.Duration) (verdict ClauseVerdict, rule uint32) {
	entry := t.lookup(netip.AddrFrom16(f.Addr.As16()))
	if entry == nil {
		return VerdictNone, 0
	}
	clause := entry.Clause
	for range MaxChain {
		if clause.matches(f, boot) {
			return clause.Verdict, clause.Rule
		}
		if clause.Next == 0 {
			return VerdictNone, 0
		}
		clause = t.Clauses[clause.Next]
	}
	return VerdictDeny, 0 // Compile makes no such chain; closed, as in the kernel
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
	const entrySize, clauseSize = 17, 22
	b := make([]byte, 0, 8+len(t.Entries)*(entrySize+clauseSize)+len(t.Clauses)*clauseSize)
	b = binary.BigEndian.AppendUint64(b, uint64(len(t.Entries)))
	for i := range t.Entries {
		addr := t.Entries[i].Prefix.Addr().As16()
		b = append(b, addr[:]...)
		b = append(b, uint8(t.Entries[i].Prefix.Bits()))
		b = t.Entries[i].Clause.append(b)
	}
	for i := range t.Clauses {
		b = t.Clauses[i].append(b)
	}
	return sha256.Sum256(b)
}

func (c *Clause) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(c.Deadline))
	b = binary.BigEndian.AppendUint16(b, c.First)
	b = binary.BigEndian.AppendUint16(b, c.Last)
	b = append(b, uint8(c.Match), uint8(c.Verdict))
	b = binary.BigEndian.AppendUint32(b, c.Next)
	return binary.BigEndian.AppendUint32(b, c.Rule)
}
