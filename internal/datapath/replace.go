// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"

	"github.com/netfence/netfence/policy"
)

// The policy word, as in bpf/types.h: mode 3, flags 9, slot 20, generation 32 bits.
const (
	wordSlotShift       = uint32(bpfLimitWORD_SLOT_SHIFT)
	wordSlotMask        = uint32(bpfLimitWORD_SLOT_MASK)
	wordGenerationShift = 32
	wordPolicyMask      = 1<<wordGenerationShift - 1
)

func wordSlot(word uint64) uint32 { return uint32(word>>wordSlotShift) & wordSlotMask }

// compose leaves the generation to put.
func compose(c *policy.Compiled, s *slot) uint64 {
	word := uint64(kernelMode(c.Mode))
	if c.Replies {
		word |= uint64(bpfWordFlagWORD_REPLIES)
	}
	if c.Audit {
		word |= uint64(bpfWordFlagWORD_AUDIT)
	}
	if c.Configures {
		word |= uint64(bpfWordFlagWORD_CONFIGURES)
	}
	if c.RepliesUDP {
		word |= uint64(bpfWordFlagWORD_REPLIES_UDP)
	}
	if c.Table != nil && len(c.Table.Sources) > 0 {
		word |= uint64(bpfWordFlagWORD_SOURCE)
	}
	if c.Names != nil && c.Names.Intercepts() {
		word |= uint64(bpfWordFlagWORD_DNS)
	}
	switch c.Loopback {
	case policy.LoopbackOwn:
	case policy.LoopbackAllow:
		word |= uint64(bpfWordFlagWORD_LOOPBACK_ALLOW)
	default:
		word |= uint64(bpfWordFlagWORD_LOOPBACK_DENY)
	}
	if s != nil {
		word |= uint64(s.index) << wordSlotShift
	}
	return word
}

func kernelMode(m policy.Mode) bpfMode {
	switch m {
	case policy.ModeAllowlist:
		return bpfModeMODE_ALLOWLIST
	case policy.ModeDenylist:
		return bpfModeMODE_DENYLIST
	case policy.ModeDisabled:
		return bpfModeMODE_DISABLED
	}
	return bpfModeMODE_BLOCK_ALL
}

// Replace puts c in force for id and returns when it is. Every packet sees the
// policy before or the one after, whole. On an error nothing has changed;
// ErrFull says that the kernel has no room for the rules.
//
// What queries have taught under a name that c grants no more, or for other
// ports, is cut in the same instant, and flows to it end.
//
// Rules that another attachment has in force already are shared, and cost
// nothing; others go into tables that are in place already, or, where there are no
// more of these, wait once for RCU.
//
// Queries of the attachment go on meanwhile, but for the moment of the change.
func (d *Datapath) Replace(id string, c *policy.Compiled) error { return d.replace(id, c, 0) }

func (d *Datapath) replace(id string, c *policy.Compiled, flags uint64) error {
	s, err := d.slots.acquire(c.Table) // takes as long as there are rules: not under the lock
	if err != nil {
		return fmt.Errorf("replace policy of %s: %w", id, full(err))
	}
	index, unused, err := d.flip(id, c, s, flags)
	d.slots.release(unused)
	if err != nil {
		return fmt.Errorf("replace policy of %s: %w", id, err)
	}
	if index == 0 {
		return nil // it is as it was
	}
	// The policy is in force. What it denies or cuts is dropped, entry or no entry.
	if err := d.endFlows(index); err != nil {
		d.log.Warn("flows that the policy ends were not removed", "attachment", id, "err", err)
	}
	return nil
}

// flip changes the policy, and returns the slot that is of no use to the
// attachment any more: s itself when nothing came of it. The index is 0 unless
// the word has changed.
func (d *Datapath) flip(id string, c *policy.Compiled, s *slot, flags uint64) (index uint32, unused *slot, err error) {
	a := d.lock(id)
	if a == nil {
		return 0, s, ErrNotAttached
	}
	defer a.mu.Unlock()
	if err := d.renew(a); err != nil {
		return 0, s, err
	}
	names := a.recut(c.Names)
	if err := d.enact(names); err != nil {
		return 0, s, err
	}
	word := compose(c, s) | flags
	if word == a.word&wordPolicyMask && !a.cutsNext() {
		a.rules.Store(&rules{c.Rulebook, generation(a.word)})
		a.announce(id, c.Names)
		return 0, s, nil
	}
	if err := d.put(a, word); err != nil {
		// Names that were to be cut at this word hold on; the next call looks at each again.
		return 0, s, err
	}
	a.rules.Store(&rules{c.Rulebook, generation(a.word)})
	a.announce(id, c.Names)
	unused, a.slot = a.slot, s
	if err := d.purge(a); err != nil {
		d.log.Warn("what the policy cuts is removed later", "attachment", id, "err", err)
		a.memory.hurry()
	}
	return a.index, unused, nil
}

// rules are what the clauses of a generation's slot came from.
type rules struct {
	policy.Rulebook
	generation uint32
}

// ruleText is the rule that an event names; empty if it names none, or is of
// another policy than the one in force.
func (d *Datapath) ruleText(e *bpfEvent) string {
	a := d.at(uint32(e.Identity))
	if e.Rule == 0 || a == nil {
		return ""
	}
	r := a.rules.Load()
	if r == nil || a.record.Incarnation != uint32(e.Identity>>32) || r.generation != e.Generation {
		return ""
	}
	return r.RuleText(e.Rule, bpfReason(e.Reason) == bpfReasonREASON_GUARD)
}

// announce makes names what queries are decided by, and stale what was decided
// before.
func (a *attachment) announce(id string, names *policy.Names) {
	a.version++
	if names == nil {
		a.member.Store(nil)
		return
	}
	a.member.Store(&Member{
		ID: id, Index: a.index, Names: names, incarnation: a.record.Incarnation, version: a.version,
		leased: a.word&uint64(bpfWordFlagWORD_LEASED) != 0,
	})
}

// close makes a block-all: what follows, the links' end included, is not a gap.
func (d *Datapath) close(a *attachment) error {
	a.member.Store(nil)
	return d.put(a, uint64(bpfModeMODE_BLOCK_ALL))
}

// put is the flip: one aligned 64-bit store. The generation grows with each,
// also over the lives of an index.
func (d *Datapath) put(a *attachment, word uint64) error {
	if err := d.bpf.NfWords.Lookup(a.index, &a.word); err != nil {
		return fmt.Errorf("policy word: %w", err)
	}
	next := a.word>>wordGenerationShift + 1
	if next>>32 != 0 {
		// Back at 0 nothing would be cut that is to be. Closed it can be all the same.
		if word != uint64(bpfModeMODE_BLOCK_ALL) {
			return fmt.Errorf("%w: its policy was replaced as often as can be told apart (detach, and attach again)", ErrFull)
		}
		next--
	}
	word |= next << wordGenerationShift
	if err := d.bpf.NfWords.Put(a.index, word); err != nil {
		return fmt.Errorf("policy word: %w", err)
	}
	a.word = word
	return nil
}
