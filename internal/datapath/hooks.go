// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// verdictHook is the hook that drops packets, the first on and the last off;
// repliesHook notes what answers are owed to.
const (
	verdictHook = "verdict"
	repliesHook = "replies"
)

// hook is one program of an attachment, at its place on the target. What holds it
// there needs no daemon; if it has a pin, that has the hook's name in the attachment's
// directory.
type hook struct {
	name    string
	program *ebpf.Program
	attach  ebpf.AttachType
	by      holder
}

func (h hook) pin(dir string) string { return filepath.Join(dir, h.name) }

// holder is a way to hold a program on a target.
type holder interface {
	// hold puts the program on a target, of which on is the ifindex, or a file descriptor
	// of the cgroup. Without a daemon it stays from then on.
	hold(h hook, dir string, on int) error
	// verify checks that a program of ours sits on the target of r, of which on is as for
	// hold: fs.ErrNotExist if hold has yet to be called, or somebody has undone it;
	// ErrVanished if it sits nowhere, errForeign if somebody else's stands in its place,
	// both if it sits elsewhere.
	verify(h hook, dir string, r bpfAttachment, on int) error
	// update puts the program in the place of an earlier daemon's, without a gap, or
	// returns what verify would, and changes nothing.
	update(h hook, dir string, r bpfAttachment) error
	// watch is verify at less cost, and errBehind if another program runs first.
	watch(h hook, dir string, r bpfAttachment, on int) error
}

// leader is a holder that can put its program before others again, without a gap.
// twin is the same program once more.
type leader interface {
	lead(h hook, dir, pending string, twin *ebpf.Program, r bpfAttachment) error
}

// hooks are those that r needs, the verdict first.
func (d *Datapath) hooks(r bpfAttachment) []hook {
	if !isInterface(r) {
		return cgroupHooks(&d.bpf.bpfPrograms, d.ours)
	}
	b, on := &d.bpf, d.interfaceHolder(r)
	out, host, in := b.NfOutL2, b.NfHostL2, b.NfInL2
	if r.Flags&uint32(bpfAttachmentFlagATTACHMENT_HEADERLESS) != 0 {
		out, host, in = b.NfOutL3, b.NfHostL3, b.NfInL3
	}
	if r.Flags&uint32(bpfAttachmentFlagATTACHMENT_EGRESS) != 0 {
		return []hook{
			{verdictHook, host, ebpf.AttachTCXEgress, on},
			{repliesHook, in, ebpf.AttachTCXIngress, on},
		}
	}
	return []hook{
		{verdictHook, out, ebpf.AttachTCXIngress, on},
		{repliesHook, in, ebpf.AttachTCXEgress, on},
	}
}

// interfaceHolder is how r is held. What an earlier daemon has attached in another way
// than this one would stays as it is.
func (d *Datapath) interfaceHolder(r bpfAttachment) holder {
	id := uuid.UUID(r.Id).String()
	for _, name := range []string{verdictHook, repliesHook} {
		pin, err := os.Stat(filepath.Join(d.pins.attached(id), name))
		if err != nil {
			continue
		}
		if pin.IsDir() {
			return clsact{d.ours, id, r.Incarnation}
		}
		return tcx{pinnedLink{d.ours}}
	}
	if d.filters {
		return clsact{d.ours, id, r.Incarnation}
	}
	return tcx{pinnedLink{d.ours}}
}

// lost returns the hooks that are not on the target. dead is true if all of ours are on
// no target: then it is the target that is gone, or somebody has detached them all.
func lost(hooks []hook, dir string, r bpfAttachment) (list []hook, dead bool, err error) {
	held := 0
	err = at(r, func(on int) error {
		for _, h := range hooks {
			switch err := h.by.verify(h, dir, r, on); {
			case errors.Is(err, ErrVanished) && !errors.Is(err, errForeign):
				dead = true
			case err == nil:
				held++
				continue
			case !errors.Is(err, errForeign) && !errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("%s: %w", h.name, err)
			}
			list = append(list, h)
		}
		return nil
	})
	if errors.Is(err, ErrVanished) {
		return hooks, true, nil
	}
	return list, dead && held == 0, err
}

// at calls do with the ifindex of r's target, or with a descriptor of its cgroup. ErrVanished:
// there is no such cgroup. Its links it may have for longer, until its last socket is closed.
func at(r bpfAttachment, do func(on int) error) error {
	if isInterface(r) {
		return do(int(r.Ifindex))
	}
	return onCgroup(r.Scope, do)
}

// vanished recognises the kernel's ways to say that the target is no more.
func vanished(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrVanished, err)
	}
	return err
}
