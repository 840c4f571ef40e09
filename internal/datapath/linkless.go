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

// linkless holds programs on cgroups without a link, which the kernel does for as long as
// it has the cgroup: a pin and its link take several times the memory and the time. They
// are found by asking the cgroup, and known by their maps.
//
// One that outlives its attachment, say on a cgroup that was removed while a socket of it
// was open, refuses nothing: on a cgroup that is nobody's it is the verdict that drops.
//
// Links of earlier ABIs, which had one for each hook, stay until their attachment ends:
// no program takes a link's place without a gap or both of them running.
type linkless struct{ earlier pinnedLink }

// hold lets a program of ours that is there give way in the same step.
func (x linkless) hold(h hook, _ string, fd int) error {
	there, err := x.earlier.ours.on(fd, h)
	if err != nil {
		return err
	}
	return put(fd, h, there)
}

// put attaches the program of h, in place of the first of those that are there.
func put(fd int, h hook, there []ebpf.ProgramID) error {
	attach := link.RawAttachProgramOptions{Target: fd, Attach: h.attach, Program: h.program, Flags: unix.BPF_F_ALLOW_MULTI}
	if len(there) > 0 {
		old, err := ebpf.NewProgramFromID(there[0])
		if err != nil {
			return fmt.Errorf("program at %s: %w", h.name, err)
		}
		defer old.Close()
		attach.Anchor = link.ReplaceProgram(old)
	}
	err := link.RawAttachProgram(attach)
	if errors.Is(err, unix.ENOENT) && len(there) > 0 {
		err = fmt.Errorf("%w: program %d is held by a link that has lost its pin", errForeign, there[0])
	}
	if err != nil {
		return fmt.Errorf("program at %s: %w", h.name, err)
	}
	return nil
}

func (x linkless) verify(h hook, _ string, r bpfAttachment) error {
	return onCgroup(r.Scope, func(fd int) error { return x.earlier.ours.isOn(fd, h) })
}

func (x linkless) watch(h hook, dir string, r bpfAttachment) error { return x.verify(h, dir, r) }

func (x linkless) update(h hook, dir string, r bpfAttachment) error {
	var foreign error
	switch err := x.earlier.update(h, dir, r); {
	case errors.Is(err, errForeign):
		foreign = err
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrVanished):
		return err
	}
	err := onCgroup(r.Scope, func(fd int) error {
		there, err := x.earlier.ours.on(fd, h)
		if err == nil && len(there) == 0 {
			err = fs.ErrNotExist
		}
		if err != nil {
			return err
		}
		return put(fd, h, there)
	})
	return errors.Join(foreign, err)
}

// leave takes what no link holds off the target of r.
func (o *ours) leave(r bpfAttachment) error {
	if isInterface(r) {
		return nil
	}
	return o.leaveCgroup(r.Scope)
}

// leaveCgroup finds none where the cgroup is gone.
func (o *ours) leaveCgroup(id uint64) error {
	err := onCgroup(id, func(fd int) error {
		var errs []error
		for _, h := range cgroupHooks(&bpfPrograms{}, o)[1:] {
			there, err := o.on(fd, h)
			errs = append(errs, err)
			for _, id := range there {
				errs = append(errs, detachProgram(fd, h, id))
			}
		}
		return errors.Join(errs...)
	})
	if errors.Is(err, ErrVanished) {
		return nil
	}
	return err
}

// leaveCgroupOf is leaveCgroup for the one that a pinned verdict is on, if it is on one.
func (o *ours) leaveCgroupOf(verdict string) error {
	l, info, err := o.open(verdict)
	if errors.Is(err, errForeign) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pinned link %s: %w", verdict, err)
	}
	defer l.Close()
	on := seatOf(info)
	if on.kind != link.CgroupType || on.target == 0 {
		return nil
	}
	if len(o.maps) == 0 { // somebody has unpinned them, but a name alone is not enough here
		if o, err = o.beside(info.Program); err != nil {
			return err
		}
	}
	return o.leaveCgroup(on.target)
}

func detachProgram(fd int, h hook, id ebpf.ProgramID) error {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: fd, Attach: h.attach, Program: p})
		err = errors.Join(err, p.Close())
	}
	if err != nil && !errors.Is(err, unix.ENOENT) { // a link holds it
		return fmt.Errorf("program at %s: %w", h.name, err)
	}
	return nil
}
