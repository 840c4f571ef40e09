// SPDX-License-Identifier: Apache-2.0

package reconciler

import (
	"errors"
	"fmt"
	"slices"
)

// An orphan is an attachment that the kernel holds and the state does not know.
// No crash leaves one: an attachment is in the file before it is in the kernel,
// and in the kernel no more before it leaves the file. So the file was lost, and
// whoever lost it did not ask for workloads to be set free: orphans go on
// filtering as they did, are reported, and end when somebody asks for it.

func (r *Reconciler) findOrphans() error {
	ids, err := r.kernel.IDs()
	if err != nil {
		return fmt.Errorf("list what the kernel holds: %w", err)
	}
	orphans := r.store.Unknown(ids)
	if len(orphans) > 0 {
		r.log.Error("attachments in the kernel that the state does not know go on filtering (`netfenced detach --all` ends them)",
			"attachments", orphans)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.orphans = orphans
	return nil
}

// Orphans returns the ids that the kernel held at the start without the state
// knowing them, and that it still holds, sorted.
func (r *Reconciler) Orphans() ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.remaining()
}

// remaining keeps of the orphans those that are still there. mu is held.
func (r *Reconciler) remaining() ([]string, error) {
	if len(r.orphans) == 0 {
		return nil, nil
	}
	ids, err := r.kernel.IDs()
	if err != nil {
		return nil, fmt.Errorf("list what the kernel holds: %w", err)
	}
	r.orphans = slices.DeleteFunc(r.orphans, func(id string) bool { return !slices.Contains(ids, id) })
	return slices.Clone(r.orphans), nil
}

// DetachOrphans ends them, for a caller who asked to detach everything.
func (r *Reconciler) DetachOrphans() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, id := range r.orphans {
		if err := r.kernel.Detach(id); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", id, err))
		}
	}
	_, err := r.remaining()
	return errors.Join(append(errs, err)...)
}
