// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func TestAttachIsClosedAndDetachIsWhole(t *testing.T) {
	dir := pinDir(t)
	d := open(t, dir)
	for name, tg := range map[string]target.Target{"interface": vethTarget(t, "v0"), "cgroup": cgroupTarget(t)} {
		t.Run(name, func(t *testing.T) {
			id := attach(t, d, tg)
			a := d.known[id]
			if bpfMode(a.word&0xf) != bpfModeMODE_BLOCK_ALL {
				t.Errorf("word %#x, want block-all", a.word)
			}
			if err := d.Attach(id, tg); err != nil {
				t.Errorf("attach again: %v", err)
			}
			generation := a.word >> wordGenerationShift
			if err := d.Detach(id); err != nil {
				t.Fatal(err)
			}
			if err := d.Detach(id); err != nil {
				t.Errorf("detach again: %v", err)
			}
			if left := pinned(t, dir); len(left) > 0 {
				t.Errorf("pins left: %v", left)
			}
			if tg.Type == target.Cgroup {
				if left := d.occupied(t, tg); len(left) > 0 {
					t.Errorf("programs left: %v", left)
				}
			}
			var record bpfAttachment
			if err := d.bpf.NfAttachments.Lookup(a.index, &record); err != nil || record != (bpfAttachment{}) {
				t.Errorf("record left: %+v, %v", record, err)
			}
			again := attach(t, d, tg)
			b := d.known[again]
			if b.record.Incarnation <= a.record.Incarnation {
				t.Errorf("incarnation %d after %d", b.record.Incarnation, a.record.Incarnation)
			}
			if b.index == a.index && b.word>>wordGenerationShift <= generation {
				t.Errorf("generation %d after %d", b.word>>wordGenerationShift, generation)
			}
		})
	}
}

// pinned lists the pins of links.
func pinned(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(pins(dir).links(), "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A cgroup's storage outlives its links: without the zero that Detach writes,
// the next attachment would begin with the policy of the last.
func TestCgroupStorageIsZeroedByDetach(t *testing.T) {
	d := open(t, pinDir(t))
	tg := cgroupTarget(t)
	id := attach(t, d, tg)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeDisabled})
	var owner uint64
	if err := d.bpf.NfCgroups.Lookup(tg.CgroupID, &owner); err != nil || owner == 0 {
		t.Fatalf("storage %#x, %v; want the attachment", owner, err)
	}
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	err := d.bpf.NfCgroups.Lookup(tg.CgroupID, &owner)
	if err == nil && owner != 0 {
		t.Errorf("storage %#x after detach, want 0", owner)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Error(err)
	}
}

func TestOpenAdopts(t *testing.T) {
	dir := pinDir(t)
	before, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	veth, cgroup := vethTarget(t, "v0"), cgroupTarget(t)
	one, two := attachOnly(t, before, veth), attachOnly(t, before, cgroup)
	shared := packetPolicy()
	replace(t, before, one, shared)
	replace(t, before, two, shared)
	if a, b := before.known[one].slot, before.known[two].slot; a != b {
		t.Errorf("equal rules in slots %d and %d", a.index, b.index)
	}
	word := before.known[one].word
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}

	after := open(t, dir)
	for id, tg := range map[string]target.Target{one: veth, two: cgroup} {
		if err := after.Attach(id, tg); err != nil {
			t.Errorf("adopted %s: %v", tg.Name, err)
		}
	}
	if got := after.known[one].word; got != word {
		t.Errorf("word %#x after adoption, want %#x", got, word)
	}
	replace(t, after, one, shared)
	if got := after.known[one].word; got != word {
		t.Errorf("an equal policy flipped the word: %#x, was %#x", got, word)
	}
	if got := run(t, after.bpf.NfOutL2, veth, udp4("192.0.2.1", 9)); got != passed {
		t.Errorf("allowed: verdict %#x, want pass", got)
	}
	if users := after.known[one].slot.users; users != 2 {
		t.Errorf("slot has %d users, want 2", users)
	}
	for _, id := range []string{one, two} {
		if err := after.Detach(id); err != nil {
			t.Error(err)
		}
	}
	testenv.Eventually(t, "the slot of no user is emptied", func() bool {
		var content bpfSlotContent
		if err := after.bpf.NfSlots.Lookup(wordSlot(word), &content); err != nil {
			t.Fatal(err)
		}
		return content == bpfSlotContent{}
	})
	var inner ebpf.MapID
	if err := after.bpf.NfTables.Lookup(wordSlot(word), &inner); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("table of the freed slot: %v, want none", err)
	}
}

func attachOnly(t testing.TB, d *Datapath, tg target.Target) string {
	t.Helper()
	id := newID()
	if err := d.Attach(id, tg); err != nil {
		t.Fatal(err)
	}
	return id
}

// What a crash can leave half done, Open removes.
func TestOpenRemovesLeftovers(t *testing.T) {
	for name, crash := range map[string]func(t *testing.T, d *Datapath, id string){
		"attach, before the links are published": func(t *testing.T, d *Datapath, id string) {
			if err := os.Rename(d.pins.attached(id), d.pins.pending(id)); err != nil {
				t.Fatal(err)
			}
		},
		"attach, before any link": func(t *testing.T, d *Datapath, id string) {
			if err := d.ours.removeAttachment(d.pins.attached(id)); err != nil {
				t.Fatal(err)
			}
		},
		"attach, verdict alone": func(t *testing.T, d *Datapath, id string) {
			if err := os.Rename(d.pins.attached(id), d.pins.pending(id)); err != nil {
				t.Fatal(err)
			}
			if err := d.ours.leave(d.known[id].record); err != nil {
				t.Fatal(err)
			}
			links, err := os.ReadDir(d.pins.pending(id))
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range links {
				if l.Name() != verdictHook {
					if err := os.RemoveAll(filepath.Join(d.pins.pending(id), l.Name())); err != nil {
						t.Fatal(err)
					}
				}
			}
		},
	} {
		for kind, make := range map[string]func(testing.TB) target.Target{
			"interface": func(t testing.TB) target.Target { return vethTarget(t, "v"+string(rune('a'+len(name)%26))) },
			"cgroup":    cgroupTarget,
		} {
			t.Run(name+", "+kind, func(t *testing.T) {
				dir := pinDir(t)
				d, err := openRenewed(Config{Dir: dir})
				if err != nil {
					t.Fatal(err)
				}
				tg := make(t)
				id := attachOnly(t, d, tg)
				crash(t, d, id)
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}

				d = open(t, dir)
				if left := d.Attachments(); len(left) > 0 {
					t.Errorf("attachments left: %+v", left)
				}
				if left := pinned(t, dir); len(left) > 0 {
					t.Errorf("pins left: %v", left)
				}
				if tg.Type == target.Cgroup {
					if left := d.occupied(t, tg); len(left) > 0 {
						t.Errorf("programs left: %v", left)
					}
				}
				attach(t, d, tg) // nothing is in the way
			})
		}
	}
}

func TestVanishedTargets(t *testing.T) {
	d := open(t, pinDir(t))

	veth := vethTarget(t, "v0")
	id := attach(t, d, veth)
	l, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	if err := d.Attach(id, veth); !errors.Is(err, ErrVanished) {
		t.Errorf("deleted interface: %v, want ErrVanished", err)
	}

	cgroup := cgroupTarget(t)
	id = attach(t, d, cgroup)
	if err := os.Remove(cgroup.Name); err != nil {
		t.Fatal(err)
	}
	// the kernel takes the links off a little later
	testenv.Eventually(t, "deleted cgroup is ErrVanished", func() bool {
		return errors.Is(d.Attach(id, cgroup), ErrVanished)
	})
	if err := os.Mkdir(cgroup.Name, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.Attach(newID(), cgroup); !errors.Is(err, ErrVanished) {
		t.Errorf("cgroup created again under the same name: %v, want ErrVanished", err)
	}
}

func TestRemoveAll(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	attachOnly(t, d, vethTarget(t, "v0"))
	attachOnly(t, d, cgroupTarget(t))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("pin directory left: %v", err)
	}
	if err := RemoveAll(dir); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := RemoveAll(t.TempDir()); err == nil {
		t.Error("removed from what is no bpffs")
	}
}
