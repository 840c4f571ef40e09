// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"slices"
)

// Wait returns nil once revision rev of an attachment, or a later one, is in
// force in the kernel; for Removal, once the kernel has let go. Otherwise it
// returns a *RefusedError when the kernel refused rev for good, ErrNotFound when
// the attachment is gone or on its way out, or ctx's error.
func (s *Store) Wait(ctx context.Context, id string, rev Revision) error {
	for {
		changed, err := s.await(id, rev)
		if changed == nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Superseded tells whether a later revision replaced rev, and all that it changed, before it came into force. Of what is
// long ago it says no.
func (s *Store) Superseded(id string, rev Revision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[id]
	return r != nil && slices.ContainsFunc(r.skipped, func(s span) bool { return s.first <= rev && rev <= s.last })
}

// await returns the outcome of rev or, while there is none, what to wait for.
func (s *Store) await(id string, rev Revision) (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[id]
	if r == nil {
		if rev == Removal {
			return nil, nil
		}
		return nil, ErrNotFound
	}
	if known, err := r.outcome(rev); known {
		return nil, err
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed, nil
}
