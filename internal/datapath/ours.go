// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// errForeign says that a pin is somebody else's. It is never written to, detached or unpinned.
var errForeign = errors.New("not Netfence's")

// ours tells what Netfence has attached from what others have: a program of its uses maps that are
// pinned beside the links.
type ours struct {
	base string // of the pins
	maps map[ebpf.MapID]bool

	mu       sync.Mutex
	programs map[ebpf.ProgramID]bool // those looked at; an id is not used again
}

func newOurs(base string, pinned ...*ebpf.Map) (*ours, error) {
	o := &ours{base: base, maps: make(map[ebpf.MapID]bool), programs: make(map[ebpf.ProgramID]bool)}
	for _, m := range pinned {
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("pinned map %s: %w", m, err)
		}
		id, ok := info.ID()
		if !ok {
			return nil, fmt.Errorf("pinned map %s: the kernel gives no id", m)
		}
		o.maps[id] = true
	}
	return o, nil
}

// oursOf is for maps that are pinned under the given names.
func (p pins) oursOf(made map[string]**ebpf.Map, names []string) (*ours, error) {
	var pinned []*ebpf.Map
	for _, name := range names {
		pinned = append(pinned, *made[name])
	}
	return newOurs(p.base(), pinned...)
}

// oursIn is for pins that nobody has opened. Maps that cannot be are passed over.
func oursIn(base string) (*ours, error) {
	entries, err := os.ReadDir(filepath.Join(base, mapsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("pinned maps: %w", err)
	}
	opened := make(map[string]*ebpf.Map)
	var pinned []*ebpf.Map
	for _, e := range entries {
		if m, err := ebpf.LoadPinnedMap(filepath.Join(base, mapsDir, e.Name()), nil); err == nil {
			opened[e.Name()] = m
			pinned = append(pinned, m)
		}
	}
	o, err := newOurs(base, pinned...)
	return o, errors.Join(err, closeMaps(opened))
}

// has is true for a program of ours. Where somebody has unpinned all maps, its name has to do.
func (o *ours) has(id ebpf.ProgramID) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if mine, known := o.programs[id]; known {
		return mine, nil
	}
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("program %d: %w", id, err)
	}
	info, err := p.Info()
	if err := errors.Join(err, closeBPF(p)); err != nil {
		return false, fmt.Errorf("program %d: %w", id, err)
	}
	mine := len(o.maps) == 0 && strings.HasPrefix(info.Name, "nf_")
	used, _ := info.MapIDs()
	for _, m := range used {
		mine = mine || o.maps[m]
	}
	o.programs[id] = mine
	return mine, nil
}

// beside takes for ours what shares a map with a program.
func (o *ours) beside(id ebpf.ProgramID) (*ours, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, fmt.Errorf("program %d: %w", id, err)
	}
	info, err := p.Info()
	if err := errors.Join(err, closeBPF(p)); err != nil {
		return nil, fmt.Errorf("program %d: %w", id, err)
	}
	sharing := &ours{base: o.base, maps: make(map[ebpf.MapID]bool), programs: make(map[ebpf.ProgramID]bool)}
	used, _ := info.MapIDs()
	for _, m := range used {
		sharing.maps[m] = true
	}
	return sharing, nil
}

// open returns a pinned link that holds a program of ours, and errForeign for whatever else is there.
func (o *ours) open(path string) (link.Link, *link.Info, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		for _, cause := range []error{fs.ErrNotExist, unix.EPERM, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
			if errors.Is(err, cause) {
				return nil, nil, err
			}
		}
		return nil, nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, nil, errors.Join(err, closeBPF(l))
	}
	mine, err := o.has(info.Program)
	if err == nil && !mine {
		err = fmt.Errorf("%w: a link of type %d with program %d", errForeign, info.Type, info.Program)
	}
	if err != nil {
		return nil, nil, errors.Join(err, closeBPF(l))
	}
	return l, info, nil
}

// remove ends a link of ours, or a filter; what is not is set aside.
func (o *ours) remove(path string) error {
	if places, ok, err := pinnedPlaces(path); ok || err != nil {
		return errors.Join(err, o.removeFilters(path, places))
	}
	l, _, err := o.open(path)
	switch {
	case errors.Is(err, errForeign):
		return o.setAside(path)
	case err != nil:
		return fmt.Errorf("pinned link %s: %w", path, err)
	}
	// The kernel ends a link that has lost its last reference only a little later.
	err = l.Detach()
	if errors.Is(err, unix.ENOLINK) { // its target is gone
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("detach link %s: %w", path, err)
	}
	return errors.Join(err, closeBPF(l), os.Remove(path))
}

// clear makes room for a pin. A link of ours that holds nothing any more goes.
func (o *ours) clear(path string) error {
	l, info, err := o.open(path)
	if err != nil && !errors.Is(err, errForeign) {
		return err
	}
	if err != nil || seatOf(info).target != 0 {
		err = o.setAside(path)
	} else {
		err = os.Remove(path)
	}
	if l != nil {
		err = errors.Join(err, closeBPF(l))
	}
	return err
}

// setAside takes somebody else's pin out of the way, to foreign/ID_HOOK. What is pinned does not change.
func (o *ours) setAside(path string) error {
	foreign := filepath.Join(o.base, foreignDir)
	if err := os.MkdirAll(foreign, 0o700); err != nil {
		return fmt.Errorf("set pin %s aside: %w", path, err)
	}
	name := filepath.Base(path)
	if dir := filepath.Base(filepath.Dir(path)); dir != linksDir {
		name = strings.TrimPrefix(dir, pendingPrefix) + "_" + name
	}
	to := filepath.Join(foreign, name)
	err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	for n := 2; errors.Is(err, unix.EEXIST); n++ {
		to = filepath.Join(foreign, name+"_"+strconv.Itoa(n))
		err = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return fmt.Errorf("set pin %s aside: %w", path, err)
	}
	return nil
}
