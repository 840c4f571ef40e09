// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// pinnedLink is what holders share that hold a program by a bpf_link. The pin is
// the link's only reference.
type pinnedLink struct{ ours *ours }

// pin gives a new link its pin, before anything else: a link without one ends with
// its last file descriptor. What stood in the place has no use any more, or is
// somebody else's; see lost.
func (x pinnedLink) pin(h hook, dir string, l link.Link, err error) error {
	if err != nil {
		return fmt.Errorf("link %s: %w", h.name, vanished(err))
	}
	err = l.Pin(h.pin(dir))
	if errors.Is(err, fs.ErrExist) {
		if err = x.ours.clear(h.pin(dir)); err == nil {
			err = l.Pin(h.pin(dir))
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("pin link %s: %w", h.name, err), closeBPF(l))
	}
	return closeBPF(l)
}

// open returns the link that holds h on the target of r, or says as verify does why
// there is none.
func (x pinnedLink) open(h hook, dir string, r bpfAttachment) (link.Link, error) {
	l, info, err := x.ours.open(h.pin(dir))
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", h.name, err)
	}
	switch on := seatOf(info); {
	case on.target == 0:
		err = ErrVanished
	case on != seatFor(h, r):
		err = fmt.Errorf("%w: it is on another target: %w", errForeign, ErrVanished)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("link %s: %w", h.name, err), closeBPF(l))
	}
	return l, nil
}

// seat is where a link holds its program.
type seat struct {
	kind   link.Type
	attach ebpf.AttachType
	target uint64 // ifindex or cgroup id; 0: it was detached, or the target is gone
}

func seatOf(info *link.Info) seat {
	if on := info.TCX(); on != nil {
		return seat{info.Type, ebpf.AttachType(on.AttachType), uint64(on.Ifindex)}
	}
	if on := info.Cgroup(); on != nil {
		return seat{info.Type, ebpf.AttachType(on.AttachType), on.CgroupId}
	}
	return seat{kind: info.Type}
}

func seatFor(h hook, r bpfAttachment) seat {
	if isInterface(r) {
		return seat{link.TCXType, h.attach, uint64(r.Ifindex)}
	}
	return seat{link.CgroupType, h.attach, r.Scope}
}

func (x pinnedLink) verify(h hook, dir string, r bpfAttachment, _ int) error {
	l, err := x.open(h, dir, r)
	if err != nil {
		return err
	}
	return closeBPF(l)
}

func (x pinnedLink) update(h hook, dir string, r bpfAttachment) error {
	l, err := x.open(h, dir, r)
	if err != nil {
		return err
	}
	if h.program == nil {
		return errors.Join(errOnlyCgroups, closeBPF(l))
	}
	err = l.Update(h.program)
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("link %s: %w", h.name, ErrVanished)
	}
	return errors.Join(err, closeBPF(l))
}
