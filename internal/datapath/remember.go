// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// remember rebuilds what the attachments have learned from the pinned maps, and
// removes what is nobody's, cut, over or without a name: a crash leaves such.
func (d *Datapath) remember(now time.Duration) error {
	byIncarnation := make(map[uint32]*attachment, len(d.known))
	for _, a := range d.known {
		byIncarnation[a.record.Incarnation] = a
	}
	changes := make(map[uint32]*change, len(d.known))
	err := eachEntry(d.bpf.NfNames, func(key *bpfNameKey, k *bpfName) error {
		n := nameFromKernel(k)
		a := byIncarnation[key.Incarnation]
		if a == nil || a.isCut(n) {
			return d.bpf.NfNames.Delete(key)
		}
		changeOf(changes, a).names[key.Id] = n
		return nil
	})
	if err != nil {
		return fmt.Errorf("adopt learned names: %w", err)
	}
	err = eachEntry(d.bpf.NfLearned, func(key *bpfLearnedKey, chunk *bpfLearned) error {
		a := byIncarnation[key.Incarnation]
		if a == nil {
			return d.bpf.NfLearned.Delete(key)
		}
		changeOf(changes, a).place(key, chunk)
		return nil
	})
	if err != nil {
		return fmt.Errorf("adopt learned addresses: %w", err)
	}
	for _, c := range changes {
		c.commit(&d.room)
		leftover := c.memory.change(c.incarnation)
		leftover.forget(nil, func(g grant) bool {
			_, known := c.memory.names[g.name]
			return !known || g.deadline <= now
		})
		if err := d.enact(leftover); err != nil {
			return err
		}
		c.memory.due = now // the first sweep looks at names without grants
	}
	for _, a := range d.known {
		if err := d.bpf.NfLessons.Lookup(a.index, &a.lessons); err != nil {
			return fmt.Errorf("lessons: %w", err)
		}
		if len(a.memory.addrs) == 0 {
			continue
		}
		if err := d.countLesson(a); err != nil { // a crash may have come before it was counted
			return err
		}
	}
	return nil
}

func changeOf(changes map[uint32]*change, a *attachment) *change {
	c := changes[a.index]
	if c == nil {
		c = a.memory.change(a.record.Incarnation)
		changes[a.index] = c
	}
	return c
}

// place puts a chunk, in whatever order they come, where it belongs.
func (c *change) place(key *bpfLearnedKey, chunk *bpfLearned) {
	addr := addrFromWords(key.Address.Word)
	gs := c.addrs[addr]
	first := int(key.Chunk) * grantsPerChunk
	if missing := first + grantsPerChunk - len(gs); missing > 0 {
		gs = append(gs, make(grants, missing)...)
	}
	for i, g := range chunk.Grants {
		if g.Deadline != 0 {
			gs[first+i] = grantFromKernel(g)
		}
	}
	c.addrs[addr] = gs
}

// eachEntry reads a hash map that nobody adds to meanwhile.
func eachEntry[K, V any](m *ebpf.Map, do func(*K, *V) error) error {
	const batch = 4096 // the kernel wants room for a whole bucket
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if err := do(&keys[i], &values[i]); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}
