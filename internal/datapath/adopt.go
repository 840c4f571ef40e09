// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// updateLinks puts this daemon's programs under all pinned links. What is not a link
// of ours on the attachment's target stays as it is: Attach puts back what is
// missing, and the watch ends what has no target.
func (d *Datapath) updateLinks() error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for id, a := range d.known {
		g.Go(func() error {
			hooks := d.hooks(a.record)
			for _, h := range hooks {
				if err := d.updateLink(a, id, h); err != nil {
					return err
				}
			}
			return d.noteOthers(d.pins.attached(id), hooks)
		})
	}
	return g.Wait()
}

func (d *Datapath) updateLink(a *attachment, id string, h hook) error {
	dir := d.pins.attached(id)
	err := h.by.update(h, dir, a.record)
	switch {
	case errors.Is(err, errForeign):
		d.problems.note(h.pin(dir), fmt.Sprintf("attachment %s: %v", id, err))
		return nil
	case errors.Is(err, ErrVanished), errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("attachment %s: %w", id, err)
	}
	return nil
}

// noteOthers reports what is pinned beside the hooks.
func (d *Datapath) noteOthers(dir string, hooks []hook) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("pinned links: %w", err)
	}
	for _, e := range entries {
		if !slices.ContainsFunc(hooks, func(h hook) bool { return h.name == e.Name() }) {
			d.noteForeign(filepath.Join(dir, e.Name()))
		}
	}
	return nil
}

func (d *Datapath) noteForeign(path string) {
	d.problems.note(path, fmt.Sprintf("pin %s is not Netfence's (move it to where it belongs)", path))
}

// sweepUnknown looks at the pins of no attachment. No crash leaves any: a record is
// written before the first link and cleared after the last. Links whose target is
// gone are removed; others filter as they did.
func (d *Datapath) sweepUnknown() error {
	entries, err := os.ReadDir(d.pins.links())
	if err != nil {
		return fmt.Errorf("pinned links: %w", err)
	}
	for _, e := range entries {
		if d.known[e.Name()] != nil || strings.HasPrefix(e.Name(), pendingPrefix) {
			continue
		}
		dir := filepath.Join(d.pins.links(), e.Name())
		live, defunct, err := d.ours.count(dir)
		if err != nil {
			return err
		}
		switch {
		case live > 0:
			d.problems.note(dir, fmt.Sprintf("links in %s filter for an attachment that nothing is known of (`netfenced detach --all` ends them)", dir))
		case defunct > 0:
			d.log.Info("links without a target removed", "pins", dir)
			if err := d.ours.removeAttachment(dir); err != nil {
				return err
			}
		default:
			d.noteForeign(dir)
		}
	}
	return nil
}

// count tells how many links of ours are pinned in dir: on a target, and on none.
func (o *ours) count(dir string) (live, defunct int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("pinned links: %w", err)
	}
	for _, e := range entries {
		if places, ok, err := pinnedPlaces(filepath.Join(dir, e.Name())); ok || err != nil {
			if err != nil {
				return 0, 0, fmt.Errorf("pinned filter %s: %w", filepath.Join(dir, e.Name()), err)
			}
			there, err := o.countFilters(places)
			if err != nil {
				return 0, 0, err
			}
			live, defunct = live+there, defunct+max(1, len(places))-there
			continue
		}
		l, info, err := o.open(filepath.Join(dir, e.Name()))
		switch {
		case errors.Is(err, errForeign), errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return 0, 0, fmt.Errorf("pinned link %s: %w", filepath.Join(dir, e.Name()), err)
		case seatOf(info).target != 0:
			live++
		default:
			defunct++
		}
		if err := l.Close(); err != nil {
			return 0, 0, err
		}
	}
	return live, defunct, nil
}

func (o *ours) countFilters(places []place) (live int, err error) {
	for _, p := range places {
		handle, _, err := p.find(o)
		if err != nil {
			return 0, fmt.Errorf("filter %s: %w", p, err)
		}
		if handle != 0 {
			live++
		}
	}
	return live, nil
}
