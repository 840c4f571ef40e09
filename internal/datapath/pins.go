// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mapsDir       = "maps"
	linksDir      = "links"
	foreignDir    = "foreign" // what was in the way; see setAside
	pendingPrefix = "tmp_"
)

// pins is the only place that knows the paths below the pin directory.
type pins string

func (p pins) base() string              { return p.version(abi) }
func (p pins) maps() string              { return filepath.Join(p.base(), mapsDir) }
func (p pins) links() string             { return filepath.Join(p.base(), linksDir) }
func (p pins) attached(id string) string { return filepath.Join(p.links(), id) }
func (p pins) pending(id string) string  { return filepath.Join(p.links(), pendingPrefix+id) }

// create makes the directories, which survive any crash half made.
func (p pins) create() error {
	for _, dir := range []string{p.maps(), p.links()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("pin directory: %w", err)
		}
	}
	return nil
}

// sweep removes links that were being attached or detached when a daemon died.
func (p pins) sweep(o *ours) error {
	entries, err := os.ReadDir(p.links())
	if err != nil {
		return fmt.Errorf("pinned links: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), pendingPrefix) {
			errs = append(errs, o.removeAttachment(filepath.Join(p.links(), e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeAttachment ends an attachment of which nothing but its directory is known.
func (o *ours) removeAttachment(dir string) error {
	if err := o.leaveCgroupOf(filepath.Join(dir, verdictHook)); err != nil {
		return err
	}
	return o.unpin(dir)
}

// unpin ends a directory of links. The verdict goes last: until then no packet passes
// that it would have dropped.
func (o *ours) unpin(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, unix.ENOTDIR) {
		return o.setAside(dir)
	}
	if err != nil {
		return fmt.Errorf("pinned links: %w", err)
	}
	var last string
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.Name() == verdictHook {
			last = path
			continue
		}
		errs = append(errs, o.remove(path))
	}
	if last != "" {
		errs = append(errs, o.remove(last))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

// RemoveAll ends every attachment of any ABI below dir and removes the maps. It
// is for `detach --all` without a daemon; the caller holds the daemon's lock.
// What somebody else has pinned among them stays.
func RemoveAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	if err := onBPFFS(dir); err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if _, ok := abiOf(e.Name()); ok {
			errs = append(errs, removeABI(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// A run has its own pins below (internal/run), and others may have theirs.
	return removeIfEmpty(dir)
}

func removeABI(base string) error {
	o, err := oursIn(base)
	if err != nil {
		return err
	}
	attached, err := os.ReadDir(filepath.Join(base, linksDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pinned links: %w", err)
	}
	var errs []error
	for _, e := range attached {
		errs = append(errs, o.removeAttachment(filepath.Join(base, linksDir, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(base, mapsDir)); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	return errors.Join(removeIfEmpty(filepath.Join(base, linksDir)), removeIfEmpty(base))
}

func removeIfEmpty(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("pin directory: %w", err)
	}
	return nil
}
