// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// clsact holds programs on interfaces where there is no tcx: as filters of the
// queueing discipline of that name. A filter needs nobody to keep it, so what stands
// in the pin directory is where it is: HOOK/SIDE_IFINDEX_HANDLE, empty directories.
//
// Whoever may configure the network can take a filter away, or the discipline with
// all that is in it, and nothing fails then: see Watch. A device that moves to
// another network namespace loses both. The discipline stays until its device goes,
// since others may have filters in it.
type clsact struct {
	ours        *ours
	id          string // of the attachment; in the filter's name
	incarnation uint32 // of it; in the filter's handle
}

func (c clsact) place(h hook, ifindex int) place {
	side := "ingress"
	if h.attach == ebpf.AttachTCXEgress {
		side = "egress"
	}
	return place{side: side, ifindex: ifindex, handle: filterHandle(c.incarnation), id: c.id}
}

// hold writes where the filter will be before it is there: what is written may not
// be found, what is not written would stay for ever.
func (c clsact) hold(h hook, dir string, ifindex int) error {
	p := c.place(h, ifindex)
	at := filepath.Join(h.pin(dir), p.String())
	err := os.MkdirAll(at, 0o700)
	if errors.Is(err, unix.ENOTDIR) {
		if err = c.ours.setAside(h.pin(dir)); err == nil {
			err = os.MkdirAll(at, 0o700)
		}
	}
	if err != nil {
		return fmt.Errorf("pin filter %s: %w", h.name, err)
	}
	if err := p.put(c.ours, h.program); err != nil {
		return fmt.Errorf("filter %s: %w", h.name, err)
	}
	return nil
}

// find returns where the filter of h is on the target of r, or says as verify does why
// there is none: fs.ErrNotExist while there is the device, whose filters anybody may
// remove. Without a daemon to see it, another device may have got the index then.
func (c clsact) find(h hook, dir string, r bpfAttachment) (p place, handle uint32, first bool, err error) {
	p = c.place(h, int(r.Ifindex))
	written, err := readPlaces(h.pin(dir), c.id)
	if err != nil {
		return p, 0, false, fmt.Errorf("filter %s: %w", h.name, err)
	}
	for _, w := range written {
		if w != p {
			return p, 0, false, fmt.Errorf("filter %s: %w: it is on another target: %w", h.name, errForeign, ErrVanished)
		}
	}
	handle, first, err = p.find(c.ours)
	switch {
	case err == nil && handle == 0 && hasInterface(p.ifindex):
		err = fs.ErrNotExist
	case err == nil && handle == 0:
		err = ErrVanished
	}
	if err != nil {
		return p, 0, false, fmt.Errorf("filter %s: %w", h.name, err)
	}
	return p, handle, first, nil
}

func (c clsact) verify(h hook, dir string, r bpfAttachment, _ int) error {
	_, _, _, err := c.find(h, dir, r)
	return err
}

// watch does not ask for the pin: without it the filter filters as it did.
func (c clsact) watch(h hook, dir string, r bpfAttachment, _ int) error {
	_, _, first, err := c.find(h, dir, r)
	if err == nil && !first {
		return errBehind
	}
	return err
}

func (c clsact) update(h hook, dir string, r bpfAttachment) error {
	p, handle, _, err := c.find(h, dir, r)
	switch {
	case err != nil:
		return err
	case h.program == nil:
		return errOnlyCgroups
	}
	if err := p.replace(handle, h.program); err != nil {
		return err
	}
	return p.keep(c.ours, handle)
}

// lead needs no twin: the kernel takes a program twice.
func (c clsact) lead(h hook, dir, _ string, _ *ebpf.Program, r bpfAttachment) error {
	p, _, _, err := c.find(h, dir, r)
	if err != nil {
		return err
	}
	return p.put(c.ours, h.program)
}

// readPlaces reads what clsact has written for a hook. It is somebody else's if it
// is no directory of clsact's.
func readPlaces(pin, id string) ([]place, error) {
	entries, err := os.ReadDir(pin)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: no directory", errForeign)
	}
	if err != nil {
		return nil, err
	}
	var places []place
	for _, e := range entries {
		p, err := parsePlace(e.Name(), id)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errForeign, err)
		}
		places = append(places, p)
	}
	return places, nil
}

// pinnedPlaces is readPlaces for a path of which nothing is known; ok is false if it is
// not clsact's.
func pinnedPlaces(pin string) (places []place, ok bool, err error) {
	info, err := os.Lstat(pin)
	if err != nil || !info.IsDir() {
		return nil, false, nil //nolint:nilerr // whoever looks at it next will say so
	}
	id := strings.TrimPrefix(filepath.Base(filepath.Dir(pin)), pendingPrefix)
	places, err = readPlaces(pin, id)
	if errors.Is(err, errForeign) {
		return nil, false, nil
	}
	return places, err == nil, err
}

// removeFilters ends the filters that a pin tells of, and the pin.
func (o *ours) removeFilters(pin string, places []place) error {
	var errs []error
	for _, p := range places {
		err := p.remove(o)
		if err == nil {
			err = os.Remove(filepath.Join(pin, p.String()))
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.Remove(pin))...)
}
