// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// What the reconciler uses. It handles one attachment at a time in one place
// only, and hands back the Desired that it acted on.

// Desired is what the kernel is to hold for one attachment.
type Desired struct {
	ID       string
	Target   target.Target
	Revision Revision
	// Removing: the kernel is to let go of it. Compiled is nil then.
	Removing bool
	Compiled *policy.Compiled

	version version
	whole   Revision
}

// Dirty returns the channel that has a token when TakeDirty has ids. It has one
// reader.
func (s *Store) Dirty() <-chan struct{} { return s.dirty.wake }

// TakeDirty returns the attachments that changed since it was last called, and
// after Open all, in no order.
func (s *Store) TakeDirty() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirty.take()
}

// Moved returns the channel that has a token when TakeMoved has ids. It has one
// reader.
func (s *Store) Moved() <-chan struct{} { return s.moved.wake }

// TakeMoved returns the attachments that came, or are on their way out, since it
// was last called, and after Open all, in no order. Some may be gone by now.
func (s *Store) TakeMoved() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved.take()
}

// Desired returns what is desired of id now, or ErrNotFound.
func (s *Store) Desired(id string) (Desired, error) {
	s.mu.Lock()
	r := s.records[id]
	if r == nil {
		s.mu.Unlock()
		return Desired{}, ErrNotFound
	}
	a, compiled, whole := r.attachment, r.compiled, r.whole
	s.mu.Unlock()

	d := Desired{
		ID: id, Target: a.Target, Revision: a.Revision, Removing: a.Removing != ReasonNone,
		Compiled: compiled, version: a.version(), whole: whole,
	}
	if d.Removing || compiled != nil {
		return d, nil
	}
	// An error is of a file that an older version wrote, or of a guard that this
	// daemon has and the one before had not: Apply lets nothing else pass.
	common, compiled, err := s.compile(a.Policy, a.Pending)
	if err != nil {
		return d, err
	}
	d.Compiled, d.version.Policy = compiled, common
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.attachment.Policy == a.Policy { // from the file, where each has its own
		r.attachment.Policy = common
	}
	return d, nil
}

// InForce reports that the kernel holds d. That too is written, unless it was
// known: should a later change be refused, this is what to go back to, after a
// crash too. An error means that it was not noted.
func (s *Store) InForce(d Desired) error {
	r, a, err := s.edit(d.ID)
	if err != nil {
		return nil //nolint:nilerr // gone: nobody asks any more
	}
	defer r.edit.Unlock()
	if a.Removing == ReasonNone && (r.inForce == nil || r.inForce.Revision != d.Revision) {
		var policies []version
		if a.Revision != d.Revision { // else it is in the file
			policies = append(policies, d.version)
		}
		if err := s.file.save(&a, &d.version, policies...); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.skip(d.whole)
	r.inForce, r.applied = &d.version, d.Revision
	if a.Revision == d.Revision {
		r.compiled = nil
	}
	if d.Revision >= r.healedBy {
		r.lastError = nil
	}
	s.notify(r)
	return nil
}

// Failed reports that the kernel could not be brought to d, which will be tried
// again. Status shows why.
func (s *Store) Failed(d Desired, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.records[d.ID]; r != nil {
		r.lastError, r.healedBy = err, d.Revision
		s.notify(r)
	}
}

// Refused reports that the kernel refused d for good and holds what it held
// before. That is desired again, and whoever waits for d or what came after it
// gets a *RefusedError.
//
// If d is no longer desired, nothing is decided: what came after it is tried
// first, and its fate is d's too. If there is nothing to go back to, because
// nothing was ever in force or because just that was refused, d stays desired,
// and back is false.
func (s *Store) Refused(d Desired, why error) (back bool, err error) {
	r, a, err := s.edit(d.ID)
	if err != nil {
		return true, nil //nolint:nilerr // gone: nobody asks any more
	}
	defer r.edit.Unlock()
	if a.Revision != d.Revision {
		return true, nil // and dirty, since it changed after d
	}
	back = r.inForce != nil && r.inForce.Revision != a.Revision
	refused := r.applied + 1 // and what follows
	if back {
		refused = r.inForce.Revision + 1
		a = a.with(*r.inForce)
		if err := s.file.save(&a, r.inForce); err != nil {
			return false, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.refuse(refused, why)
	r.lastError, r.healedBy = why, d.Revision
	if back {
		r.healedBy = r.last + 1
		r.attachment, r.compiled = a, nil
		if r.applied == 0 { // known from the file only
			s.dirty.add(d.ID)
		}
	}
	s.notify(r)
	return back, nil
}

// Removed reports that the kernel has let go of d, which Remove had asked for.
// An error means that it was not noted.
func (s *Store) Removed(d Desired) error {
	r, _, err := s.edit(d.ID)
	if err != nil {
		return nil //nolint:nilerr // noted before
	}
	defer r.edit.Unlock()
	if err := s.file.remove(d.ID); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bury(r)
	return nil
}

// Unknown returns those of ids that no attachment has, sorted.
func (s *Store) Unknown(ids []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var unknown []string
	for _, id := range ids {
		if s.records[id] == nil {
			unknown = append(unknown, id)
		}
	}
	slices.Sort(unknown)
	return unknown
}
