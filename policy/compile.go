// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// UnsupportedError names a part of a policy that is understood, but that
// nothing puts in force yet. Accepting it would promise what does not happen.
type UnsupportedError struct{ Field string }

func (e *UnsupportedError) Error() string {
	return e.Field + ": not supported yet (leave it out)"
}

// Compile makes the form that the kernel holds. The policy must be valid. A
// prefix to which more than MaxChain clauses apply is an [*InvalidError], a
// part that has no effect yet an [*UnsupportedError].
func (p *Policy) Compile() (*Compiled, error) {
	switch {
	case p.Audit:
		return nil, &UnsupportedError{"audit"}
	case len(p.Source) > 0:
		return nil, &UnsupportedError{"source"}
	case len(p.RepliesUDP) > 0:
		return nil, &UnsupportedError{"replies_udp"}
	}
	for i, z := range p.DNS.Forward {
		if z.Original {
			return nil, &UnsupportedError{fmt.Sprintf("dns.forward[%d].original", i)}
		}
	}
	c := &Compiled{Mode: p.Mode, Names: p.names()}
	switch p.Mode {
	case ModeAllowlist, ModeDenylist:
		c.Replies, c.Loopback = p.Replies == RepliesDefault, p.Loopback
	case ModeDisabled:
		c.Loopback = LoopbackAllow
		return c, nil
	default: // an unknown mode is closed
		c.Mode, c.Loopback = ModeBlockAll, LoopbackDeny
		return c, nil
	}
	if len(p.Allow)+len(p.Deny) == 0 {
		return c, nil
	}
	var err error
	c.Table, err = p.compileTable()
	return c, err
}

// placed is a rule at its place in the table. Sorted, a prefix comes before
// all that it covers, and rules of one prefix come in the order in which they
// are asked.
type placed struct {
	hi, lo uint64 // the address of the 128-bit prefix
	bits   int
	order  uint32 // deny before allow, then as listed; math.MaxUint32: no rule
}

func place(p netip.Prefix, order uint32) placed {
	p = to128(p)
	a := p.Addr().As16()
	return placed{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:]), p.Bits(), order}
}

func (a placed) compare(b placed) int {
	if a.hi != b.hi {
		return cmp.Compare(a.hi, b.hi)
	}
	if a.lo != b.lo {
		return cmp.Compare(a.lo, b.lo)
	}
	if a.bits != b.bits {
		return a.bits - b.bits
	}
	return cmp.Compare(a.order, b.order)
}

func (a placed) samePrefix(b placed) bool { return a.hi == b.hi && a.lo == b.lo && a.bits == b.bits }

func (a placed) prefix() netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.PrefixFrom(netip.AddrFrom16(b), a.bits)
}

// compiler builds a table from placed rules, one prefix after the other.
type compiler struct {
	policy *Policy
	table  Table
	own    []Clause // of the prefix at hand; reused
	open   []cover  // the entries that cover the prefix at hand, nearest last
}

// cover is an entry whose chain those that it covers may continue.
type cover struct {
	prefix netip.Prefix
	entry  int    // index into Table.Entries
	link   uint32 // index into Table.Clauses of its first clause; 0: not there yet
	length int    // of its chain
}

func (p *Policy) compileTable() (*Table, error) {
	n := len(p.Allow) + len(p.Deny)
	rules := make([]placed, 0, n+1)
	for i := range p.Deny {
		rules = append(rules, place(p.Deny[i].Prefix, uint32(i)))
	}
	for i := range p.Allow {
		rules = append(rules, place(p.Allow[i].Prefix, uint32(len(p.Deny)+i)))
	}
	rules = append(rules, place(mapped4, math.MaxUint32))
	slices.SortFunc(rules, placed.compare)

	c := compiler{policy: p}
	c.table.Entries = make([]Entry, 0, n+1)
	c.table.Clauses = make([]Clause, 1)
	for len(rules) > 0 {
		end := 1
		for end < len(rules) && rules[end].samePrefix(rules[0]) {
			end++
		}
		if err := c.add(rules[:end]); err != nil {
			return nil, err
		}
		rules = rules[end:]
	}
	return &c.table, nil
}

// add makes the entry for rules of one prefix, given in order.
func (c *compiler) add(rules []placed) error {
	prefix := rules[0].prefix()
	for len(c.open) > 0 && !c.open[len(c.open)-1].covers(prefix) {
		c.open = c.open[:len(c.open)-1]
	}
	closed := c.collect(rules) || prefix == mapped4 // no IPv6 prefix covers IPv4
	length, next := len(c.own), uint32(0)
	if len(c.open) > 0 && !closed {
		parent := &c.open[len(c.open)-1]
		length += parent.length
		next = c.link(parent)
	}
	if length > MaxChain {
		return c.tooLong(rules[0], length)
	}
	entry := Entry{Prefix: prefix, Clause: Clause{Verdict: VerdictNone}}
	if len(c.own) > 0 {
		// The first goes into the entry, the others in a row, the last
		// continues with the covering prefix.
		base := uint32(len(c.table.Clauses))
		for i := range c.own {
			c.own[i].Next = base + uint32(i)
		}
		c.own[len(c.own)-1].Next = next
		entry.Clause = c.own[0]
		c.table.Clauses = append(c.table.Clauses, c.own[1:]...)
	}
	c.open = append(c.open, cover{prefix: prefix, entry: len(c.table.Entries), length: length})
	c.table.Entries = append(c.table.Entries, entry)
	return nil
}

// collect fills c.own with the clauses of rules and reports whether they end
// the chain: a clause for everything, forever, leaves nothing to the next.
func (c *compiler) collect(rules []placed) (closed bool) {
	c.own = c.own[:0]
	for _, at := range rules {
		rule, verdict, number := c.rule(at.order)
		if rule == nil {
			continue
		}
		clause := Clause{Deadline: rule.Deadline, Verdict: verdict, Rule: number}
		for _, p := range rule.Ports {
			clause.First, clause.Last, clause.Match = p.First, p.Last, matchOf(p.Protocol)
			c.own = append(c.own, clause)
		}
		if len(rule.Ports) > 0 {
			continue
		}
		c.own = append(c.own, clause)
		if rule.Deadline == 0 {
			return true
		}
	}
	return false
}

// rule returns nil for the mark that keeps IPv4 apart.
func (c *compiler) rule(order uint32) (rule *Rule, verdict ClauseVerdict, number uint32) {
	p, denies := c.policy, uint32(len(c.policy.Deny))
	switch {
	case order == math.MaxUint32:
		return nil, VerdictNone, 0
	case order < denies:
		return &p.Deny[order], VerdictDeny, uint32(len(p.Allow)) + order + 1
	}
	order -= denies
	return &p.Allow[order], VerdictAllow, order + 1
}

// link returns the index of the parent's first clause, which until now may be
// in its entry only.
func (c *compiler) link(parent *cover) uint32 {
	first := c.table.Entries[parent.entry].Clause
	if parent.link == 0 && first.Verdict != VerdictNone {
		parent.link = uint32(len(c.table.Clauses))
		c.table.Clauses = append(c.table.Clauses, first)
	}
	return parent.link
}

func (c *compiler) tooLong(at placed, length int) error {
	rule, _, number := c.rule(at.order)
	_, list, index := c.policy.RuleAt(number)
	return invalidAt(list.String(), index, rule.String(), fmt.Errorf(
		"%d port ranges and lifetimes apply to prefix %s and those that cover it, at most %d (merge ranges)",
		length, rule.Prefix, MaxChain))
}

func (c *cover) covers(p netip.Prefix) bool {
	return c.prefix.Bits() < p.Bits() && c.prefix.Contains(p.Addr())
}

func matchOf(p Protocol) Match {
	switch p {
	case TCP:
		return MatchTCP
	case UDP:
		return MatchUDP
	}
	return MatchTCPUDP
}
