// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
)

// standing is what the kernel holds, in words that are the same for every life of an attachment.
type standing struct {
	Pins    []string // of links
	Hooks   []string // of a cgroup, where a program of ours is, as often as there is one
	Mode    bpfMode
	Rules   string // hash
	Owned   bool   // the programs know whose the target is
	Learned []string
	// All that there is, of whatever attachment.
	Attachments, Tables, Names, Chunks, Flows, Owners int
}

func (v *victim) standing(t *testing.T) standing {
	t.Helper()
	d := v.d
	testenv.Eventually(t, "no table cools", func() bool {
		d.slots.mu.Lock()
		defer d.slots.mu.Unlock()
		return len(d.slots.spares) == d.slots.wanted &&
			len(d.slots.free)+len(d.slots.spares)+len(d.slots.used) == int(d.bpf.NfSlots.MaxEntries())-1
	})
	if got, want := len(d.indices.free)+len(d.indices.cooling)+len(d.known), int(d.bpf.NfAttachments.MaxEntries())-1; got != want {
		t.Errorf("%d indices are free or in use, of %d", got, want)
	}
	s := standing{
		Names: entries[bpfNameKey, bpfName](t, d.bpf.NfNames), Chunks: entries[bpfLearnedKey, bpfLearned](t, d.bpf.NfLearned),
		Flows: entries[bpfFlowKey, bpfFlow](t, d.bpf.NfFlows), Owners: entries[bpfInterfaceKey, uint64](t, d.bpf.NfInterfaces),
	}
	for _, path := range pinned(t, v.dir) {
		s.Pins = append(s.Pins, strings.TrimPrefix(path, d.pins.links()))
	}
	if v.target.Type == target.Cgroup {
		s.Hooks = d.occupied(t, v.target)
	}
	records, err := readArray[bpfAttachment](d.bpf.NfAttachments)
	if err != nil {
		t.Fatal(err)
	}
	contents, err := readArray[bpfSlotContent](d.bpf.NfSlots)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.Incarnation != 0 {
			s.Attachments++
		}
	}
	for slot, c := range contents {
		var inner ebpf.MapID
		err := d.bpf.NfTables.Lookup(uint32(slot), &inner)
		if (err == nil) != (c != bpfSlotContent{}) && slot != 0 {
			t.Errorf("slot %d: noted as %x, table: %v", slot, c.Hash[:4], err)
		}
		if c != (bpfSlotContent{}) && c.Hash != spareHash {
			s.Tables++
		}
	}
	a := d.known[v.id]
	if a == nil {
		if v.target.Type == target.Cgroup {
			var owner uint64
			if err := d.bpf.NfCgroups.Lookup(v.target.CgroupID, &owner); err == nil && owner != 0 {
				t.Errorf("the storage of no attachment holds %#x", owner)
			}
		}
		return s
	}
	s.Mode = bpfMode(a.word & 0xf)
	s.Owned = owner(t, d, v.id) == identity(a)
	if a.slot != nil {
		s.Rules = hex.EncodeToString(a.slot.hash[:])
	}
	for _, l := range d.Learned(v.id) {
		s.Learned = append(s.Learned, fmt.Sprint(l.Addr, l.Names))
	}
	return s
}

// occupied lists the hooks of a cgroup where programs of ours are, one for each of them.
func (d *Datapath) occupied(t *testing.T, tg target.Target) (names []string) {
	t.Helper()
	err := onCgroup(tg.CgroupID, func(fd int) error {
		for _, h := range cgroupHooks(&d.bpf.bpfPrograms, d.ours) {
			there, err := d.ours.on(fd, h)
			if err != nil {
				return err
			}
			for range there {
				names = append(names, h.name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// entries counts those of a hash map.
func entries[K, V any](t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	if err := eachEntry(m, func(*K, *V) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}
