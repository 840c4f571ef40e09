// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// pinnedLink is what holders share that hold a program by a bpf_link. The pin is
// the link's only reference.
type pinnedLink struct{}

// pin gives a new link its pin, before anything else: a link without one ends with
// its last file descriptor.
func (pinnedLink) pin(h hook, dir string, l link.Link, err error) error {
	if err != nil {
		return fmt.Errorf("link %s: %w", h.name, vanished(err))
	}
	if err := l.Pin(h.pin(dir)); err != nil {
		return errors.Join(fmt.Errorf("pin link %s: %w", h.name, err), l.Close())
	}
	return l.Close()
}

func (pinnedLink) missing(h hook, dir string) (bool, error) {
	_, err := os.Stat(h.pin(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

func (pinnedLink) info(h hook, dir string) (*link.Info, error) {
	l, err := link.LoadPinnedLink(h.pin(dir), nil)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", h.name, err)
	}
	info, err := l.Info()
	if err := errors.Join(err, l.Close()); err != nil {
		return nil, fmt.Errorf("link %s: %w", h.name, err)
	}
	return info, nil
}

// update swaps the program of a pinned link. One whose target is gone has none to swap.
func (pinnedLink) update(h hook, dir string) error {
	l, err := link.LoadPinnedLink(h.pin(dir), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if h.program == nil {
		return errors.Join(errOnlyCgroups, l.Close())
	}
	err = l.Update(h.program)
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV) {
		err = nil
	}
	return errors.Join(err, l.Close())
}

// removeLink detaches before it unpins: the kernel ends a link that has lost
// its last reference only a little later.
func removeLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return errors.Join(fmt.Errorf("pinned link %s: %w", path, err), os.Remove(path))
	}
	err = l.Detach()
	if errors.Is(err, unix.ENOLINK) { // its target is gone
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("detach link %s: %w", path, err)
	}
	return errors.Join(err, l.Close(), os.Remove(path))
}
