// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// Change is an edit of an attachment's policy and of what goes with it.
type Change struct {
	// Edit returns the policy to have instead of cur, which it must not
	// change. An error refuses the change. It may be slow; only changes of the
	// same attachment wait for it.
	Edit func(cur *policy.Policy) (*policy.Policy, error)
	// Use is the named policy to have, instead of Edit; empty: none. Its revision is the attachment's from then on.
	Use string
	// UseRevision is the revision that the named policy must have; empty: any.
	UseRevision string
	// PolicyRevision is the control plane's name for the result of Edit.
	PolicyRevision string
	// Acknowledge ends pending: a source has given the policy, whole.
	Acknowledge bool
	// First: only if no source has given one yet; else nothing changes.
	First bool

	users bool // only if the attachment has the named policy already
}

// Replace is the change to p, whatever was before.
func Replace(p *policy.Policy) func(*policy.Policy) (*policy.Policy, error) {
	return func(*policy.Policy) (*policy.Policy, error) { return p, nil }
}

// Create adds an attachment, at revision 1. A zero AttachedAt is now, a nil
// policy block-all. The errors are *TakenError, *LimitError, and policy's.
func (s *Store) Create(a Attachment) (Attachment, Revision, error) {
	if a.ID == "" || strings.Contains(a.ID, "/") || a.Target.Type == 0 {
		return Attachment{}, 0, fmt.Errorf("create attachment %q of %s: not an id, or no target", a.ID, a.Target)
	}
	if a.AttachedAt.IsZero() {
		a.AttachedAt = s.clock.Wall()
	}
	a.AttachedAt = a.AttachedAt.Round(0).UTC() // as it comes from the file
	if a.Policy == nil {
		a.Policy = policy.BlockAll()
	}
	if err := s.checkMetadata(&a); err != nil {
		return Attachment{}, 0, err
	}
	p, err := s.settle(a.Policy, nil)
	if err != nil {
		return Attachment{}, 0, err
	}
	p, compiled, err := s.compile(p, a.Pending)
	if err != nil {
		return Attachment{}, 0, err
	}
	a.Policy, a.Revision, a.Removing, a.ReasonText = p, 1, ReasonNone, ""
	a.PolicyName, a.Serial = "", 0

	s.creating.Lock()
	defer s.creating.Unlock()
	if err := s.checkFree(&a); err != nil {
		return Attachment{}, 0, err
	}
	r := &record{attachment: a, compiled: compiled, last: a.Revision}
	v := a.version()
	if p.Mode == policy.ModeBlockAll {
		r.inForce = &v // as every attachment begins: known without a look
	}
	if err := s.file.save(&a, r.inForce, v); err != nil {
		return Attachment{}, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.insert(r)
	s.notify(r)
	return a, a.Revision, nil
}

// checkMetadata bounds what a caller may have kept here.
func (s *Store) checkMetadata(a *Attachment) error {
	n := len(a.Key)
	for k, v := range a.Metadata {
		n += len(k) + len(v)
	}
	if n > s.limits.MetadataBytes {
		return fmt.Errorf("bytes of key and metadata: %w", &LimitError{"limits.metadata_bytes", n, s.limits.MetadataBytes})
	}
	return nil
}

// checkFree tells whether there is room for a, and its target and key are free.
func (s *Store) checkFree(a *Attachment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := s.byTarget[identity(a.Target)]
	if has == nil && a.Key != "" {
		has = s.byKey[a.Key]
	}
	if has == nil {
		has = s.records[a.ID]
	}
	if has != nil {
		return &TakenError{ID: has.attachment.ID, Key: has.attachment.Key}
	}
	if n := len(s.records) + 1; n > s.limits.Attachments {
		return fmt.Errorf("attachments: %w", &LimitError{"limits.attachments", n, s.limits.Attachments})
	}
	return nil
}

// Check tells whether Create and Apply would take p, but for what the kernel
// says. The error is policy's.
func (s *Store) Check(p *policy.Policy) error {
	p, err := s.settle(p, nil)
	if err == nil {
		_, _, err = s.compile(p, false)
	}
	return err
}

// compile makes what the kernel is to hold, and returns the policy that others
// have in common with it. A pending attachment is closed to what the guard allows too.
func (s *Store) compile(p *policy.Policy, pending bool) (*policy.Policy, *policy.Compiled, error) {
	return s.shared.get(p, pending, func(p *policy.Policy) (*policy.Compiled, error) {
		if pending {
			return p.Compile()
		}
		return p.CompileWith(s.guard)
	})
}

// settle validates p and gives its rules their deadlines.
func (s *Store) settle(p, prev *policy.Policy) (*policy.Policy, error) {
	if err := p.Validate(s.limits.Policy); err != nil {
		return nil, err
	}
	return p.Settle(prev, s.clock.Boot(), s.clock.Wall()), nil
}

// Apply makes change of the attachment's policy desired, and returns its
// revision once that would survive a crash of the daemon; Wait tells when it is
// in force. A change that changes nothing returns the revision that there is.
// source says in Status.LastError who was refused. An error changes nothing; it
// is ErrNotFound, or says what is wrong with the policy; of a named one, also
// ErrNoPolicy or a *RevisionError.
func (s *Store) Apply(id, source string, change Change) (Revision, error) {
	s.naming.RLock()
	defer s.naming.RUnlock()
	r, a, err := s.edit(id)
	if err != nil {
		return 0, err
	}
	defer r.edit.Unlock()
	if a.Removing != ReasonNone {
		return 0, ErrNotFound
	}
	rev, err := s.apply(r, a, change)
	if err != nil && !errors.Is(err, ErrNotFound) {
		s.mu.Lock()
		defer s.mu.Unlock()
		r.lastError, r.healedBy = fmt.Errorf("policy from %s refused: %w", source, err), r.last+1
		s.notify(r)
	}
	return rev, err
}

func (s *Store) apply(r *record, a Attachment, change Change) (Revision, error) {
	if change.First && !a.Pending {
		return a.Revision, nil
	}
	next, err := s.next(r, a, change)
	if err != nil {
		return 0, err
	}
	if next.same(a.version()) {
		s.confirm(r)
		return a.Revision, nil
	}
	p, compiled, err := s.compile(next.Policy, next.Pending)
	if err != nil {
		return 0, err
	}
	next.Policy = p
	a = a.with(next)
	if err := s.file.save(&a, r.inForce, next); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.attachment, r.compiled, r.last = a, compiled, next.Revision
	if change.Acknowledge || change.Use != "" {
		r.whole = next.Revision
	}
	s.dirty.add(a.ID)
	s.notify(r)
	return next.Revision, nil
}

// next is the version that change makes of a.
func (s *Store) next(r *record, a Attachment, change Change) (version, error) {
	next := version{
		Revision:       r.last + 1,
		PolicyRevision: change.PolicyRevision,
		Pending:        a.Pending && !change.Acknowledge,
	}
	if change.Use == "" {
		p, err := change.Edit(a.Policy)
		if err == nil {
			next.Policy, err = s.settle(p, a.Policy)
		}
		return next, err
	}
	n, err := s.use(&a, change)
	if err != nil {
		return version{}, err
	}
	next.PolicyName, next.PolicyRevision, next.Serial = n.Name, n.Revision, n.serial
	if next.Policy, err = s.settle(n.Policy, a.Policy); err != nil {
		return version{}, err
	}
	if next.Policy != n.Policy {
		next.Serial = 0 // deadlines are each attachment's own, and so is the copy that has them
	}
	return next, nil
}

// confirm notes that a source wants what is desired already: after a resync, say.
func (s *Store) confirm(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.lastError != nil && r.applied == r.attachment.Revision {
		r.lastError = nil
		s.notify(r)
	}
}

// Release ends Held: the local caller is about to have its answer.
func (s *Store) Release(id string) error {
	return s.amend(id, func(a *Attachment) error {
		if a.Removing != ReasonNone {
			return ErrNotFound
		}
		a.Held = false
		return nil
	})
}

// SetMetadata replaces the metadata. The error is ErrNotFound or a *LimitError.
func (s *Store) SetMetadata(id string, metadata map[string]string) error {
	return s.amend(id, func(a *Attachment) error {
		if a.Removing != ReasonNone {
			return ErrNotFound
		}
		a.Metadata = maps.Clone(metadata)
		return s.checkMetadata(a)
	})
}

// SetTarget follows a rename: t must be the same object.
func (s *Store) SetTarget(id string, t target.Target) error {
	return s.amend(id, func(a *Attachment) error {
		if !t.Same(a.Target) {
			return fmt.Errorf("attachment %s: %s is not what was attached", id, t)
		}
		a.Target = t
		return nil
	})
}

// Remove puts an attachment on its way out, and returns the revision with which
// to Wait until the kernel has let go of it. From here on it accepts no change,
// and whoever waits for an earlier one gets ErrNotFound. The first reason stays.
func (s *Store) Remove(id string, reason Reason, text string) (Revision, error) {
	if reason == ReasonNone {
		return 0, fmt.Errorf("remove attachment %s: a reason is required", id)
	}
	err := s.amend(id, func(a *Attachment) error {
		if a.Removing == ReasonNone {
			a.Removing, a.ReasonText, a.Revision = reason, text, Removal
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return Removal, nil
}

// edit finds a record and locks its edit, which the caller unlocks.
func (s *Store) edit(id string) (*record, Attachment, error) {
	s.mu.Lock()
	r := s.records[id]
	s.mu.Unlock()
	if r == nil {
		return nil, Attachment{}, ErrNotFound
	}
	r.edit.Lock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[id] != r { // went while we waited
		r.edit.Unlock()
		return nil, Attachment{}, ErrNotFound
	}
	return r, r.attachment, nil
}

// amend changes what is beside the policy.
func (s *Store) amend(id string, change func(*Attachment) error) error {
	r, a, err := s.edit(id)
	if err != nil {
		return err
	}
	defer r.edit.Unlock()
	before := a.Removing
	if err := change(&a); err != nil {
		return err
	}
	if err := s.file.save(&a, r.inForce); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.attachment = a
	if a.Removing != before {
		s.dirty.add(id)
		s.moved.add(id)
	}
	s.notify(r)
	return nil
}
