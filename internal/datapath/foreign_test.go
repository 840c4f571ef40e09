// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/target"
)

// theirs is a program that lets everything pass and that Netfence has not loaded, under whatever name.
func theirs(t *testing.T, kind ebpf.ProgramType, attach ebpf.AttachType) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "nf_theirs", Type: kind, AttachType: attach, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = closeBPF(p) })
	return p
}

// pinned is what must not change of a foreign link.
type foreignLink struct {
	link link.Link
	info link.Info
}

func (f foreignLink) check(t *testing.T) {
	t.Helper()
	now, err := f.link.Info()
	if err != nil || now.Program != f.info.Program || seatOf(now) != seatOf(&f.info) {
		t.Errorf("the foreign link is %+v, was %+v: %v", now, f.info, err)
	}
}

// Whatever stands in the place of a link of ours, none of it is written to, detached or unpinned; it is reported, and
// the filter is put back.
func TestForeignPinsAreLeftAlone(t *testing.T) {
	pin := func(t *testing.T, l link.Link, path string) foreignLink {
		t.Helper()
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Pin(path); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(l.Unpin(), closeBPF(l)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		})
		return foreignLink{l, *info}
	}
	for kind, make := range map[string]func(testing.TB) target.Target{
		"interface": func(t testing.TB) target.Target { return vethTarget(t, "v0") },
		"cgroup":    cgroupTarget,
	} {
		for what, put := range map[string]func(t *testing.T, d *Datapath, tg target.Target, path string) foreignLink{
			"a link of the same kind on the same target": func(t *testing.T, _ *Datapath, tg target.Target, path string) foreignLink {
				if tg.Type == target.Interface {
					l, err := link.AttachTCX(link.TCXOptions{
						Interface: tg.Ifindex, Program: theirs(t, ebpf.SchedCLS, 0), Attach: ebpf.AttachTCXIngress, Anchor: link.Tail(),
					})
					if err != nil {
						t.Fatal(err)
					}
					return pin(t, l, path)
				}
				l, err := link.AttachCgroup(link.CgroupOptions{
					Path: tg.Name, Attach: ebpf.AttachCGroupInetEgress, Program: theirs(t, ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress),
				})
				if err != nil {
					t.Fatal(err)
				}
				return pin(t, l, path)
			},
			"a link of ours on another target": func(t *testing.T, d *Datapath, _ target.Target, path string) foreignLink {
				tg := vethTarget(t, "v1")
				l, err := link.AttachTCX(link.TCXOptions{Interface: tg.Ifindex, Program: d.bpf.NfInL3, Attach: ebpf.AttachTCXIngress})
				if err != nil {
					t.Fatal(err)
				}
				return pin(t, l, path)
			},
		} {
			t.Run(what+", "+kind, func(t *testing.T) {
				dir := pinDir(t)
				d, err := openRenewed(Config{Dir: dir})
				if err != nil {
					t.Fatal(err)
				}
				tg := make(t)
				id := attachOnly(t, d, tg)
				path := filepath.Join(d.pins.attached(id), verdictHook)
				if err := d.ours.remove(path); err != nil {
					t.Fatal(err)
				}
				foreign := put(t, d, tg, path)
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}

				d = open(t, dir)
				t.Cleanup(func() {
					if err := d.Detach(id); err != nil {
						t.Error(err)
					}
					foreign.check(t)
				})
				foreign.check(t)
				if got := d.Problems(); len(got) != 1 || !strings.Contains(got[0], id) {
					t.Errorf("problems: %q", got)
				}
				if err := d.Attach(id, tg); err != nil {
					t.Fatal(err)
				}
				foreign.check(t)
				if gone, _, err := lost(d.hooks(d.known[id].record), d.pins.attached(id), d.known[id].record); err != nil || len(gone) > 0 {
					t.Errorf("not put back: %v, %v", gone, err)
				}
				if _, err := os.Stat(filepath.Join(d.pins.base(), foreignDir, id+"_"+verdictHook)); err != nil {
					t.Errorf("the foreign pin: %v", err)
				}
			})
		}
	}
}

// What is pinned among the links and is of no attachment stays where it is, and is reported; detach --all leaves it too.
func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	tg := vethTarget(t, "v0")
	id := attachOnly(t, d, tg)
	paths := []string{filepath.Join(d.pins.links(), "program"), filepath.Join(d.pins.attached(id), "program")}
	for _, path := range paths {
		if err := theirs(t, ebpf.SchedCLS, 0).Pin(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(d.pins.links(), "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	d, err = openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if after := listing(t, dir); !slices.Equal(before, after) {
		t.Errorf("pins %v, were %v", after, before)
	}
	if got := d.Problems(); len(got) != 3 {
		t.Errorf("problems: %q", got)
	}
	if err := d.Attach(id, tg); err != nil {
		t.Error(err)
	}
	if err := errors.Join(d.Close(), RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"program", id + "_program"} {
		path := filepath.Join(pins(dir).base(), foreignDir, name)
		p, err := ebpf.LoadPinnedProgram(path, nil)
		if err != nil {
			t.Errorf("the foreign program: %v", err)
		}
		if err := closeBPF(p); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(pins(dir).links()); !os.IsNotExist(err) {
		t.Errorf("links are left: %v", err)
	}
	open(t, dir) // what stays is in nobody's way
}

// Links without a target go at the start, also if nothing is known of the attachment that they were of.
func TestDefunctPinsAreSwept(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	live, gone := vethTarget(t, "v0"), vethTarget(t, "v1")
	kept, swept := attachOnly(t, d, live), attachOnly(t, d, gone)
	for _, id := range []string{kept, swept} { // as if the records had been lost
		if err := d.bpf.NfAttachments.Put(d.known[id].index, &bpfAttachment{}); err != nil {
			t.Fatal(err)
		}
	}
	deleteLink(t, gone.Name)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Close(), RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(d.pins.attached(swept)); !os.IsNotExist(err) {
		t.Errorf("links without a target: %v", err)
	}
	if got := d.Problems(); len(got) != 1 || !strings.Contains(got[0], d.pins.attached(kept)) {
		t.Errorf("problems: %q", got)
	}
	if got := run(t, d.bpf.NfOutL2, live, udp4("192.0.2.1", 9)); got != dropped {
		t.Errorf("links that nothing is known of: verdict %#x, want drop", got)
	}
}

func deleteLink(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}
