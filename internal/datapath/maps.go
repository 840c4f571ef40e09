// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// openMaps opens the maps that are pinned by daemons of the given ABI. Each must be what this build
// would have made in its place; until all are known to be, nothing is written to any.
func (p pins) openMaps(version int, spec *ebpf.CollectionSpec) (opened map[string]*ebpf.Map, err error) {
	dir := filepath.Join(p.version(version), mapsDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("pinned maps: %w", err)
	}
	opened = make(map[string]*ebpf.Map, len(entries))
	defer func() {
		if err != nil {
			err = errors.Join(err, closeMaps(opened))
		}
	}()
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		m, err := openMap(path, e.Name(), spec.Maps[e.Name()])
		if err != nil {
			return opened, fmt.Errorf("pinned map %s: %w", path, err)
		}
		opened[e.Name()] = m
	}
	return opened, p.complete(version, opened)
}

func openMap(path, name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if spec == nil || spec.Pinning != ebpf.PinByName {
		return nil, errors.New("no map of this netfenced has that name (somebody else's? then remove it)")
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w (needs CAP_BPF)", err)
	}
	if err != nil {
		return nil, err
	}
	if err := isMap(m, name, spec); err != nil {
		return nil, errors.Join(err, closeBPF(m))
	}
	return m, nil
}

// isMap compares with what would be made. The kernel keeps 15 bytes of a name.
func isMap(m *ebpf.Map, name string, spec *ebpf.MapSpec) error {
	info, err := m.Info()
	if err != nil {
		return err
	}
	if info.Name == "" || !strings.HasPrefix(name, info.Name) {
		return fmt.Errorf("not Netfence's, but a map named %q (remove the pin, and what it filters by is lost; or `netfenced detach --all`)", info.Name)
	}
	if err := spec.Compatible(m); err != nil {
		return fmt.Errorf("%w (the pin is of another build; end its attachments with `netfenced detach --all`)", err)
	}
	return nil
}

// complete refuses to put empty maps in the place of those that attachments live by. Maps are
// pinned before the first link.
func (p pins) complete(version int, opened map[string]*ebpf.Map) error {
	links, err := os.ReadDir(filepath.Join(p.version(version), linksDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pinned links: %w", err)
	}
	if !slices.ContainsFunc(links, fs.DirEntry.IsDir) {
		return nil
	}
	for _, name := range oldestMaps {
		if opened[name] == nil {
			return fmt.Errorf("pin directory %s: holds attachments, but map %s is gone: what they may do is not known any more (they stay filtered; `netfenced detach --all` ends them)", p.version(version), name)
		}
	}
	return nil
}

// pinMaps pins those that nobody has before.
func (p pins) pinMaps(made map[string]**ebpf.Map, opened map[string]*ebpf.Map, names []string) error {
	for _, name := range names {
		if opened[name] != nil {
			continue
		}
		if err := (*made[name]).Pin(filepath.Join(p.maps(), name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// unpinned has maps made without a pin, for them to get it later, and returns their names.
func unpinned(spec *ebpf.CollectionSpec) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if m := spec.Maps[name]; m.Pinning == ebpf.PinByName {
			m.Pinning = ebpf.PinNone
			names = append(names, name)
		}
	}
	return names
}

func closeMaps(opened map[string]*ebpf.Map) error {
	var errs []error
	for _, m := range opened {
		errs = append(errs, closeBPF(m))
	}
	return errors.Join(errs...)
}
