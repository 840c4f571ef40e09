// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// renewAll puts this daemon's programs in the place of an earlier one's, until ctx ends.
func (d *Datapath) renewAll(ctx context.Context, adopted []*attachment) error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, a := range adopted {
		g.Go(func() error {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.gone || ctx.Err() != nil {
				return nil
			}
			return d.renew(a)
		})
	}
	return errors.Join(g.Wait(), d.earlier.close())
}

// renew does so for one attachment, before anything is put in force for it. What is not
// ours on its target stays as it is: Attach puts back what is missing, and the watch ends
// what has no target. Where it fails, status says so until the watch has done it. The
// caller holds a.mu.
func (d *Datapath) renew(a *attachment) error {
	if !a.earlier {
		return nil
	}
	id := uuid.UUID(a.record.Id).String()
	d.earlier.using.RLock()
	defer d.earlier.using.RUnlock()
	about := id + "/programs"
	if err := d.updatePrograms(a, id, &d.earlier); err != nil {
		err = fmt.Errorf("attachment %s: programs of an earlier daemon go on: %w", id, err)
		d.problems.note(about, err.Error())
		return err
	}
	d.problems.over(about)
	a.earlier = false
	return nil
}

// updatePrograms finds on the way whether all are there: looking for them once more is left to
// the watch.
func (d *Datapath) updatePrograms(a *attachment, id string, by *replacements) error {
	dir, hooks := d.pins.attached(id), d.hooks(a.record)
	pinned, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // somebody has taken them away: Attach puts them back
		return fmt.Errorf("pinned links: %w", err)
	}
	held := make(map[string]bool)
	for _, pin := range pinned {
		i := slices.IndexFunc(hooks, func(h hook) bool { return h.name == pin.Name() })
		if i < 0 {
			d.noteForeign(filepath.Join(dir, pin.Name()))
			continue
		}
		err := hooks[i].by.update(hooks[i], dir, a.record)
		if held[pin.Name()] = err == nil; err != nil {
			if err := d.updated(id, hooks[i], err); err != nil {
				return err
			}
		}
	}
	if isInterface(a.record) {
		return nil // another may have its index by the time of Attach, which looks
	}
	err = onCgroup(a.record.Scope, func(on int) error {
		for _, h := range hooks {
			if _, without := h.by.(linkless); !without || held[h.name] {
				continue
			}
			err := by.replace(h, on)
			if held[h.name] = err == nil; err != nil {
				if err := d.updated(id, h, err); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if errors.Is(err, ErrVanished) {
		return nil
	}
	a.held = err == nil && !slices.ContainsFunc(hooks, func(h hook) bool { return !held[h.name] })
	return err
}

// updated takes what stands in the way of an update for a reason to leave it.
func (d *Datapath) updated(id string, h hook, err error) error {
	switch {
	case errors.Is(err, errForeign):
		d.problems.note(h.pin(d.pins.attached(id)), fmt.Sprintf("attachment %s: %v", id, err))
		return nil
	case errors.Is(err, ErrVanished), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
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
		if err := closeBPF(l); err != nil {
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
