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

// Compile is CompileWith without a guard.
func (p *Policy) Compile() (*Compiled, error) { return p.CompileWith(nil) }

// CompileWith makes the form that the kernel holds, with guard (nil: none)
// above the policy. Both must be valid. A prefix to which more than MaxChain
// clauses apply is an [*InvalidError].
func (p *Policy) CompileWith(guard *Guard) (*Compiled, error) {
	c := &Compiled{Mode: p.Mode, Audit: p.Audit, Names: p.names(guard), Rulebook: Rulebook{p, guard}}
	t := compiler{guardAllow: guard.list(Allow), guardDeny: guard.list(Deny), sources: p.Source}
	switch p.Mode {
	case ModeAllowlist, ModeDenylist:
		c.Replies, c.Loopback = p.Replies == RepliesDefault, p.Loopback
		t.allow, t.deny = p.Allow, p.Deny
		if c.Replies {
			t.repliesUDP, c.RepliesUDP = p.RepliesUDP, len(p.RepliesUDP) > 0
		}
	case ModeDisabled: // what passes anyway needs no audit, and no source is wrong
		c.Audit, c.Loopback, t.sources = false, LoopbackAllow, nil
	case ModeBlockAll:
		c.Loopback, c.Configures = LoopbackDeny, len(t.guardAllow) > 0
	default: // an unknown mode is closed
		c.Mode, c.Audit, c.Loopback = ModeBlockAll, false, LoopbackDeny
	}
	var err error
	c.Table, err = t.compile()
	return c, err
}

// placed is a rule at its place in the table. Sorted, a prefix comes before
// all that it covers, and rules of one prefix come in the order in which they
// are asked.
type placed struct {
	hi, lo uint64 // the address of the 128-bit prefix
	bits   int
	order  uint32 // see compiler.rule; math.MaxUint32: no rule
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
	guardDeny, guardAllow, deny, allow []Rule

	sources    []Source
	repliesUDP []Ports

	table Table
	own   []Clause // of the prefix at hand; reused
	open  []cover  // the entries that cover the prefix at hand, nearest last
}

// cover is an entry whose clauses apply to those that it covers too.
type cover struct {
	prefix netip.Prefix
	// guard is all that the guard says of the prefix, to be copied, since what
	// follows it is each prefix's own.
	guard []Clause
	// closed: the guard decides everything here.
	closed bool
	rule   uint32 // order of the nearest rule of the policy, for errors
	// The policy's chain is shared by the last of each chain that continues it.
	first  Clause // of the chain; VerdictNone: it is wholly that of link
	link   uint32 // index into Table.Clauses of the chain's first clause; 0: not there yet
	length int    // of the chain
}

// compile returns nil when there is nothing to hold.
func (c *compiler) compile() (*Table, error) {
	lists := [][]Rule{c.guardDeny, c.guardAllow, c.deny, c.allow}
	n := 0
	for _, list := range lists {
		n += len(list)
	}
	if n+len(c.sources)+len(c.repliesUDP) == 0 {
		return nil, nil
	}
	rules := make([]placed, 0, n+1)
	for _, list := range lists {
		for i := range list {
			rules = append(rules, place(list[i].Prefix, uint32(len(rules))))
		}
	}
	rules = append(rules, place(mapped4, math.MaxUint32))
	slices.SortFunc(rules, placed.compare)

	c.table.Sources = c.sources
	c.table.Entries = make([]Entry, 0, n+1)
	c.table.Clauses = make([]Clause, 1, max(1, len(c.repliesUDP)))
	c.addReplies()
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

// addReplies puts the chain of UDP ports where no other chain leads.
func (c *compiler) addReplies() {
	for i, p := range c.repliesUDP {
		clause := Clause{First: p.First, Last: p.Last, Match: MatchUDP, Verdict: VerdictAllow}
		if i == 0 {
			c.table.Clauses[0] = clause
			continue
		}
		c.table.Clauses[i-1].Next = uint32(i)
		c.table.Clauses = append(c.table.Clauses, clause)
	}
}

// add makes the entry for rules of one prefix, given in order.
func (c *compiler) add(rules []placed) error {
	at := cover{prefix: rules[0].prefix(), rule: math.MaxUint32, first: Clause{Verdict: VerdictNone}}
	for len(c.open) > 0 && !c.open[len(c.open)-1].covers(at.prefix) {
		c.open = c.open[:len(c.open)-1]
	}
	var parent cover
	if len(c.open) > 0 && at.prefix != mapped4 { // no IPv6 prefix covers IPv4
		parent = c.open[len(c.open)-1]
	}
	guards := c.guardsOf(rules)
	if guards == 0 && parent.closed {
		return nil // the covering entry is the answer
	}
	if at.guard, at.closed = parent.guard, parent.closed; guards > 0 {
		closed := c.collect(rules[:guards])
		if !closed {
			c.own = append(c.own, parent.guard...)
		}
		at.guard, at.closed = slices.Clone(c.own), closed || parent.closed
	}
	if !at.closed {
		c.addChain(&at, rules[guards:])
	}
	if n := len(at.guard); n > maxGuardChain {
		return c.tooLong(rules[0].order, &at, n, maxGuardChain)
	}
	if n := len(at.guard) + at.length; n > MaxChain {
		return c.tooLong(at.rule, &at, n, MaxChain)
	}
	entry := Entry{Prefix: at.prefix, Clause: at.first}
	if len(at.guard) > 0 {
		entry.Clause = c.chain(at.guard, c.link(&at))
	}
	c.table.Entries = append(c.table.Entries, entry)
	c.open = append(c.open, at)
	return nil
}

// addChain makes the policy's chain for a prefix.
func (c *compiler) addChain(at *cover, rules []placed) {
	closed := c.collect(rules)
	at.length = len(c.own)
	if len(c.open) > 0 && at.prefix != mapped4 && !closed {
		parent := &c.open[len(c.open)-1]
		at.length += parent.length
		at.rule, at.link = parent.rule, c.link(parent)
	}
	if len(rules) > 0 && rules[0].order != math.MaxUint32 {
		at.rule = rules[0].order
	}
	if len(c.own) > 0 {
		at.first, at.link = c.chain(c.own, at.link), 0
	}
}

// chain puts clauses in a row that ends in next. The first is returned, for the
// entry to hold.
func (c *compiler) chain(clauses []Clause, next uint32) Clause {
	base := uint32(len(c.table.Clauses))
	c.table.Clauses = append(c.table.Clauses, clauses[1:]...)
	first := clauses[0]
	row := c.table.Clauses[base:]
	for i := range row {
		row[i].Next = base + uint32(i) + 1
	}
	if len(row) == 0 {
		first.Next = next
		return first
	}
	first.Next, row[len(row)-1].Next = base, next
	return first
}

// link returns the index of the first clause of the policy's chain, which until
// now may be in an entry only. 0: there is none.
func (c *compiler) link(of *cover) uint32 {
	if of.link == 0 && of.first.Verdict != VerdictNone {
		of.link = uint32(len(c.table.Clauses))
		c.table.Clauses = append(c.table.Clauses, of.first)
	}
	return of.link
}

// collect fills c.own with the clauses of rules and reports whether they end
// the chain: a clause for everything, forever, leaves nothing to the next.
func (c *compiler) collect(rules []placed) (closed bool) {
	c.own = c.own[:0]
	for _, at := range rules {
		rule, clause := c.rule(at.order)
		if rule == nil {
			continue
		}
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

// guardsOf counts the guard's rules, which come first.
func (c *compiler) guardsOf(rules []placed) int {
	n := 0
	for n < len(rules) && int(rules[n].order) < len(c.guardDeny)+len(c.guardAllow) {
		n++
	}
	return n
}

// rule finds a rule by its order, which is the order in which rules of one
// prefix are asked: the guard first, deny before allow, then as listed. clause
// is what its clauses have in common. rule is nil for the mark that keeps IPv4
// apart.
func (c *compiler) rule(order uint32) (rule *Rule, clause Clause) {
	if order == math.MaxUint32 {
		return nil, Clause{Verdict: VerdictNone}
	}
	deny, allow, i := c.guardDeny, c.guardAllow, int(order)
	clause.Guard = i < len(deny)+len(allow)
	if !clause.Guard {
		i -= len(deny) + len(allow)
		deny, allow = c.deny, c.allow
	}
	if i < len(deny) {
		clause.Verdict, clause.Rule, rule = VerdictDeny, uint32(len(allow)+i+1), &deny[i]
	} else {
		i -= len(deny)
		clause.Verdict, clause.Rule, rule = VerdictAllow, uint32(i+1), &allow[i]
	}
	clause.Deadline = rule.Deadline
	return rule, clause
}

// tooLong blames the rule with the given order.
func (c *compiler) tooLong(order uint32, at *cover, length, most int) error {
	rule, clause := c.rule(order)
	allow, deny, above := c.allow, c.deny, ""
	if clause.Guard {
		allow, deny, above = c.guardAllow, c.guardDeny, "guard."
	}
	_, list, index := ruleAt(allow, deny, clause.Rule)
	return invalidAt(above+list.String(), index, rule.String(), fmt.Errorf(
		"%d port ranges and lifetimes apply to prefix %s and those that cover it, at most %d (merge ranges)",
		length, from128(at.prefix), most))
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
