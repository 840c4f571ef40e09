// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

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
	if len(there) == 0 {
		return put(fd, h, nil)
	}
	old, err := ebpf.NewProgramFromID(there[0])
	if err != nil {
		return fmt.Errorf("program at %s: %w", h.name, err)
	}
	return errors.Join(put(fd, h, old), closeBPF(old))
}

// put attaches the program of h, in place of old; nil: beside all others.
func put(fd int, h hook, old *ebpf.Program) error {
	attach := link.RawAttachProgramOptions{Target: fd, Attach: h.attach, Program: h.program, Flags: unix.BPF_F_ALLOW_MULTI}
	if old != nil {
		attach.Anchor = link.ReplaceProgram(old)
	}
	err := link.RawAttachProgram(attach)
	if errors.Is(err, unix.ENOENT) && old != nil {
		err = fmt.Errorf("%w: %v is held by a link that has lost its pin", errForeign, old)
	}
	if err != nil {
		return fmt.Errorf("program at %s: %w", h.name, err)
	}
	return nil
}

func (x linkless) verify(h hook, _ string, _ bpfAttachment, fd int) error {
	return x.earlier.ours.isOn(fd, h)
}

func (x linkless) watch(h hook, dir string, r bpfAttachment, fd int) error {
	return x.verify(h, dir, r, fd)
}

// update is of a link of an earlier ABI. Programs without one are replaced by
// replacements.
func (x linkless) update(h hook, dir string, r bpfAttachment) error {
	return x.earlier.update(h, dir, r)
}

// replacements puts programs in place of an earlier daemon's on many cgroups. Of
// those there are few, and each is opened once.
type replacements struct {
	ours *ours

	using sync.RWMutex // held for reading while they are used, for writing while they are closed

	mu     sync.Mutex
	old    map[ebpf.ProgramID]*ebpf.Program
	latest map[string]*ebpf.Program // of old, by hook: what was replaced there just now
}

// likely is what is probably on a cgroup at h: on most there is what is on the others.
func (r *replacements) likely(h hook) *ebpf.Program {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.latest[h.name]
}

func (r *replacements) replaced(h hook, old *ebpf.Program) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.latest == nil {
		r.latest = make(map[string]*ebpf.Program)
	}
	r.latest[h.name] = old
}

func (r *replacements) program(id ebpf.ProgramID) (*ebpf.Program, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.old[id]; p != nil {
		return p, nil
	}
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	if r.old == nil {
		r.old = make(map[ebpf.ProgramID]*ebpf.Program)
	}
	r.old[id] = p
	return p, nil
}

// close lets go of them. Who needs one later opens it again.
func (r *replacements) close() error {
	r.using.Lock()
	defer r.using.Unlock()
	var errs []error
	for _, p := range r.old {
		errs = append(errs, closeBPF(p))
	}
	r.old, r.latest = nil, nil
	return errors.Join(errs...)
}

// replace is for hooks that are held without a link. fs.ErrNotExist: there is no program
// of ours, hold has yet to be called.
func (r *replacements) replace(h hook, fd int) error {
	if old := r.likely(h); old != nil && put(fd, h, old) == nil {
		return nil
	}
	there, err := r.ours.on(fd, h)
	if err == nil && len(there) == 0 {
		err = fmt.Errorf("program at %s: %w", h.name, fs.ErrNotExist)
	}
	if err != nil {
		return err
	}
	old, err := r.program(there[0])
	if err != nil {
		return fmt.Errorf("program at %s: %w", h.name, err)
	}
	if err := put(fd, h, old); err != nil {
		return err
	}
	r.replaced(h, old)
	return nil
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
func (o *ours) leaveCgroupOf(verdict string) (err error) {
	l, info, err := o.open(verdict)
	if errors.Is(err, errForeign) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pinned link %s: %w", verdict, err)
	}
	defer func() { err = errors.Join(err, closeBPF(l)) }()
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
		err = errors.Join(err, closeBPF(p))
	}
	if err != nil && !errors.Is(err, unix.ENOENT) { // a link holds it
		return fmt.Errorf("program at %s: %w", h.name, err)
	}
	return nil
}
