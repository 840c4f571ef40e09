// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// tcx holds programs on interfaces, from Linux 6.6 on.
type tcx struct{ pinnedLink }

// hold attaches at the head: a program before ours that redirects would hide ours.
func (x tcx) hold(h hook, dir string, ifindex int) error {
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: h.program, Attach: h.attach, Anchor: link.Head(),
	})
	return x.pin(h, dir, l, err)
}

// watch asks the kernel which programs run on the device; their order is the answer's.
func (x tcx) watch(h hook, _ string, _ bpfAttachment, ifindex int) error {
	there, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: h.attach})
	if err != nil {
		return vanished(err)
	}
	for i, p := range there.Programs {
		mine, err := x.ours.has(p.ID)
		switch {
		case err != nil:
			return err
		case mine && i == 0:
			return nil
		case mine:
			return errBehind
		}
	}
	return fs.ErrNotExist
}

// lead attaches twin at the head, gives its link the old one's pin, and only then ends
// the old one: the kernel takes no program twice. Then the twin gives way too.
func (x tcx) lead(h hook, dir, pending string, twin *ebpf.Program, r bpfAttachment) (err error) {
	old, err := x.open(h, dir, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeBPF(old)) }()
	before, err := link.AttachTCX(link.TCXOptions{Interface: int(r.Ifindex), Program: twin, Attach: h.attach, Anchor: link.Head()})
	if err != nil {
		return fmt.Errorf("link %s: %w", h.name, vanished(err))
	}
	defer func() { err = errors.Join(err, closeBPF(before)) }()
	if err := before.Pin(h.pin(pending)); err != nil {
		return fmt.Errorf("pin link %s: %w", h.name, err)
	}
	if err := os.Rename(h.pin(pending), h.pin(dir)); err != nil {
		return fmt.Errorf("pin link %s: %w", h.name, err)
	}
	if err := old.Detach(); err != nil {
		return fmt.Errorf("detach link %s: %w", h.name, err)
	}
	return before.Update(h.program)
}

func hasInterface(ifindex int) bool {
	_, err := net.InterfaceByIndex(ifindex)
	return err == nil
}
