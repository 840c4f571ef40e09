// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/policy"
)

const (
	// roomInterval is how often an attachment whose limit is reached looks for
	// what is over before it is due.
	roomInterval = time.Second
	// linger is how long an address that no longer holds is remembered, for what
	// is dropped on the way to it to be explained.
	linger = time.Minute
)

func generation(word uint64) uint32 { return uint32(word >> wordGenerationShift) }

// recut works out which names a policy with these Names cuts: all that it does
// not grant as they were learned. Their cut is the generation of the word that is
// to come, so that nothing changes before it does. What an unfinished Replace has
// prepared is worked out again. The caller holds a.mu.
func (a *attachment) recut(now *policy.Names) *change {
	c := a.memory.change(a.record.Incarnation)
	next := generation(a.word) + 1
	for id, n := range a.memory.names {
		if a.isCut(n) {
			continue // and stays so
		}
		var cut uint32
		if g, ok := granted(now, n); !ok || g.Key() != n.grant {
			cut = next
		}
		if n.cut != cut {
			n.cut = cut
			c.names[id] = n
		}
	}
	return c
}

func granted(now *policy.Names, n knownName) (policy.Grant, bool) {
	if now == nil {
		return policy.Grant{}, false
	}
	return now.GrantNow(n.text, n.proxy)
}

// isCut is true once the word in force cuts the name.
func (a *attachment) isCut(n knownName) bool { return n.cut != 0 && generation(a.word) >= n.cut }

// cutsNext is true if the next word cuts a name.
func (a *attachment) cutsNext() bool {
	for _, n := range a.memory.names {
		if n.cut != 0 && !a.isCut(n) {
			return true
		}
	}
	return false
}

// purge removes what is cut. The caller holds a.mu.
func (d *Datapath) purge(a *attachment) error {
	var dead []uint32
	for id, n := range a.memory.names {
		if a.isCut(n) {
			dead = append(dead, id)
		}
	}
	if len(dead) == 0 {
		return nil
	}
	c := a.memory.change(a.record.Incarnation)
	c.forget(dead, func(grant) bool { return false })
	return d.enact(c)
}

// forgetLearned removes all that an attachment has learned.
func (d *Datapath) forgetLearned(a *attachment) error {
	c := a.memory.change(a.record.Incarnation)
	var all []uint32
	for id := range a.memory.names {
		all = append(all, id)
	}
	c.forget(all, func(grant) bool { return true })
	return d.enact(c)
}

func (d *Datapath) enact(c *change) error {
	if err := apply(c.edits(&d.bpf.bpfMaps)); err != nil {
		return fmt.Errorf("learned addresses: %w", err)
	}
	c.commit(&d.room)
	return nil
}

// makeRoom removes what is over of the given attachments, whose mu is held. It is
// false if there was nothing, or if it was asked for just now.
func (d *Datapath) makeRoom(held members, now time.Duration) bool {
	made := false
	for _, a := range held {
		if now < a.roomed+roomInterval {
			continue
		}
		a.roomed = now
		if err := d.endFlows(a.index); err != nil {
			d.log.Warn("flows not swept", "err", err)
			continue
		}
		some, err := d.sweepMemory(a, now, now)
		if err != nil {
			d.log.Warn("learned addresses not swept", "err", err)
		}
		made = made || some
	}
	return made
}

// sweepLearned removes, of all attachments, what has been over for a while. The
// flows have been walked at the time given, which tells the names in use.
func (d *Datapath) sweepLearned(walked time.Duration) error {
	d.mu.Lock()
	var due []string
	for id, a := range d.known {
		if a.memory.isDue(walked) {
			due = append(due, id)
		}
	}
	d.mu.Unlock()
	var errs []error
	for _, id := range due {
		a := d.lock(id)
		if a == nil {
			continue
		}
		if _, err := d.sweepMemory(a, walked-linger, walked); err != nil {
			errs = append(errs, fmt.Errorf("attachment %s: %w", id, err))
		}
		a.mu.Unlock()
	}
	return errors.Join(errs...)
}

// hurry has the next sweep look, whatever there is to expect.
func (m *memory) hurry() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.due = 1
}

func (m *memory) isDue(now time.Duration) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.due != 0 && m.due+linger < now
}

// sweepMemory removes grants that were over before the time given, and names that
// neither a grant nor, at the time of the walk, a flow needs. The caller holds a.mu.
func (d *Datapath) sweepMemory(a *attachment, over, walked time.Duration) (some bool, err error) {
	m := &a.memory
	if err := d.purge(a); err != nil {
		return false, err
	}
	needed := make(map[uint32]bool)
	var due time.Duration
	for _, gs := range m.addrs {
		for _, g := range gs {
			if g.deadline > over {
				needed[g.name] = true
			}
		}
	}
	var dead []uint32
	for id, n := range m.names {
		if needed[id] {
			continue
		}
		// A flow that began after the walk did so on a grant that lived then.
		flows, err := d.flowsNeed(a, id, walked)
		if err != nil {
			return false, err
		}
		if flows || n.learned > over {
			due = walked // look again next time
			continue
		}
		dead = append(dead, id)
	}
	c := m.change(a.record.Incarnation)
	c.forget(dead, func(g grant) bool { return g.deadline <= over })
	if len(c.addrs) > 0 || len(dead) > 0 {
		if err := d.enact(c); err != nil {
			return false, err
		}
		some = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.due = due
	for _, gs := range m.addrs {
		for _, g := range gs {
			m.expect(g.deadline)
		}
	}
	return some, nil
}

// flowsNeed is true if a flow went by the name when the flows were last walked.
func (d *Datapath) flowsNeed(a *attachment, id uint32, walked time.Duration) (bool, error) {
	var k bpfName
	err := d.bpf.NfNames.Lookup(&bpfNameKey{Incarnation: a.record.Incarnation, Id: id}, &k)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("learned name: %w", err)
	}
	return time.Duration(k.Used) >= walked, nil
}
