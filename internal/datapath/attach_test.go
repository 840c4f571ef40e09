// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

func TestAttachPutsLinksBack(t *testing.T) {
	d := open(t, pinDir(t))
	for name, tg := range map[string]target.Target{"interface": vethTarget(t, "v0"), "cgroup": cgroupTarget(t)} {
		id := attach(t, d, tg)
		for what, remove := range map[string]func(dir string) error{
			"one":           func(string) error { return d.takeAway(id, repliesHook) },
			"the directory": d.ours.removeAttachment,
		} {
			if err := remove(d.pins.attached(id)); err != nil {
				t.Fatal(err)
			}
			if err := d.Attach(id, tg); err != nil {
				t.Errorf("%s, %s removed: %v", name, what, err)
			}
			if lost, _, err := lost(d.hooks(d.known[id].record), d.pins.attached(id), d.known[id].record); err != nil || len(lost) > 0 {
				t.Errorf("%s, %s removed: missing %v, %v", name, what, lost, err)
			}
		}
	}
}

// TestAttachLooksAgain holds that what was there at the start, and the watch has found gone since, is put back by
// the first Attach.
func TestAttachLooksAgain(t *testing.T) {
	dir := pinDir(t)
	first := open(t, dir)
	targets := map[string]target.Target{"interface": vethTarget(t, "v0"), "cgroup": cgroupTarget(t)}
	ids := map[string]string{}
	for name, tg := range targets {
		ids[name] = attachOnly(t, first, tg)
	}
	d := open(t, dir)
	for name, id := range ids {
		a := d.known[id]
		if a.held == isInterface(a.record) { // of an interface nothing is believed
			t.Fatalf("%s: found in place: %v", name, a.held)
		}
		if err := d.takeAway(id, repliesHook); err != nil {
			t.Fatal(err)
		}
		for turn := range d.hooks(a.record) {
			d.look(a, turn, nil)
		}
		if err := d.Attach(id, targets[name]); err != nil {
			t.Fatal(err)
		}
		if gone, _, err := lost(d.hooks(a.record), d.pins.attached(id), a.record); err != nil || len(gone) > 0 {
			t.Errorf("%s: missing %v, %v", name, gone, err)
		}
	}
}

// takeAway detaches a hook of id, as somebody else might.
func (d *Datapath) takeAway(id, name string) error {
	r, dir := d.known[id].record, d.pins.attached(id)
	hooks := d.hooks(r)
	h := hooks[slices.IndexFunc(hooks, func(h hook) bool { return h.name == name })]
	if _, ok := h.by.(linkless); !ok {
		return d.ours.remove(h.pin(dir))
	}
	return onCgroup(r.Scope, func(fd int) error {
		there, err := d.ours.on(fd, h)
		for _, p := range there {
			err = errors.Join(err, detachProgram(fd, h, p))
		}
		return err
	})
}

// A second attachment of a target would put its policy in place of the first's.
func TestATargetHasOneAttachment(t *testing.T) {
	d := open(t, pinDir(t))
	for name, tg := range map[string]target.Target{"interface": vethTarget(t, "v0"), "cgroup": cgroupTarget(t)} {
		id := attach(t, d, tg)
		second := newID()
		if err := d.Attach(second, tg); err == nil || errors.Is(err, ErrVanished) {
			t.Errorf("%s attached twice: %v", name, err)
		}
		if got := owner(t, d, id); got != identity(d.known[id]) {
			t.Errorf("%s belongs to %#x, want %#x", name, got, identity(d.known[id]))
		}
		if left, err := filepath.Glob(filepath.Join(d.pins.links(), "*"+second)); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}

// owner is whom the programs take the target of id for.
func owner(t *testing.T, d *Datapath, id string) (identity uint64) {
	t.Helper()
	r := d.known[id].record
	var err error
	if isInterface(r) {
		err = d.bpf.NfInterfaces.Lookup(&bpfInterfaceKey{Netns: r.Scope, Ifindex: r.Ifindex}, &identity)
	} else {
		err = d.bpf.NfCgroups.Lookup(r.Scope, &identity)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return identity
}

// After a Detach that stopped at any step, an error or a crash, a later Attach and
// Replace do what they say.
func TestAttachAfterAnUnfinishedDetach(t *testing.T) {
	steps := []struct {
		name string
		do   func(d *Datapath, a *attachment, id string) error
	}{
		{"closed", func(d *Datapath, a *attachment, _ string) error { return d.close(a) }},
		{"disowned", func(d *Datapath, a *attachment, _ string) error { return d.disown(a) }},
		{"retracted", func(d *Datapath, _ *attachment, id string) error {
			return os.Rename(d.pins.attached(id), d.pins.pending(id))
		}},
		{"without programs", func(d *Datapath, a *attachment, _ string) error { return d.ours.leave(a.record) }},
		{"unlinked", func(d *Datapath, _ *attachment, id string) error { return d.ours.unpin(d.pins.pending(id)) }},
		{"forgotten", func(d *Datapath, a *attachment, _ string) error { return d.forget(a) }},
	}
	for kind, make := range map[string]func(testing.TB) target.Target{
		"interface": func(t testing.TB) target.Target { return vethTarget(t, "v0") },
		"cgroup":    cgroupTarget,
	} {
		for last, step := range steps {
			for _, crash := range []bool{false, true} {
				if !crash && step.name != "closed" && step.name != "disowned" {
					continue // behind these, an error leaves the links to the next Detach
				}
				t.Run(fmt.Sprintf("%s, %s, crash %t", kind, step.name, crash), func(t *testing.T) {
					dir := pinDir(t)
					d, err := openRenewed(Config{Dir: dir})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() {
						if err := errors.Join(d.Close(), RemoveAll(dir)); err != nil {
							t.Error(err)
						}
					})
					tg := make(t)
					id := attachOnly(t, d, tg)
					for _, s := range steps[:last+1] {
						if err := s.do(d, d.known[id], id); err != nil {
							t.Fatal(err)
						}
					}
					if crash {
						if err := d.Close(); err != nil {
							t.Fatal(err)
						}
						if d, err = openRenewed(Config{Dir: dir}); err != nil {
							t.Fatal(err)
						}
					}
					if err := d.Attach(id, tg); err != nil {
						t.Fatal(err)
					}
					replace(t, d, id, &policy.Policy{Mode: policy.ModeDisabled})
					if got := owner(t, d, id); got != identity(d.known[id]) {
						t.Errorf("the target belongs to %#x, want %#x", got, identity(d.known[id]))
					}
				})
			}
		}
	}
}
