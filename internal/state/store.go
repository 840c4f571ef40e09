// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// Limits bounds what the store takes.
type Limits struct {
	Attachments   int // 0: 32768
	MetadataBytes int // key and metadata of one attachment together; 0: 4096
	Policy        policy.Limits
}

// Options of a Store. The zero value is good.
type Options struct {
	Limits Limits
	// Guard is above every policy; nil: none. It must be valid.
	Guard *policy.Guard
	Clock Clock        // nil: SystemClock
	Log   *slog.Logger // nil: slog.Default
}

// Store is the desired state. Its methods may be called from any goroutine.
type Store struct {
	file   *file
	limits Limits
	shared shared
	guard  *policy.Guard
	clock  Clock
	log    *slog.Logger

	// naming guards named, and is held, shared, by who puts an attachment under one of them.
	naming sync.RWMutex
	named  map[string]named

	// creating is held from the check for a free target and key until both
	// are taken. Lock order: naming, creating, record.edit, mu.
	creating sync.Mutex

	// mu guards what follows and every record but for its edit. Nothing
	// blocks under it: files are written outside.
	mu       sync.Mutex
	records  map[string]*record
	order    []*record // by AttachedAt, then ID
	byKey    map[string]*record
	byTarget map[target.Target]*record // by identity, see there
	dirty    marks                     // for the reconciler
	moved    marks                     // that came or are to go: for who watches targets
	changed  chan struct{}             // closed and replaced at every change
	gone     map[string]grave
	buried   uint64 // graves so far: their order
}

// marks are attachments that one reader has yet to look at.
type marks struct {
	ids  map[string]struct{}
	wake chan struct{} // one token: ids is not empty
}

func newMarks() marks {
	return marks{ids: make(map[string]struct{}), wake: make(chan struct{}, 1)}
}

func (m *marks) add(id string) {
	m.ids[id] = struct{}{}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *marks) take() []string {
	ids := make([]string, 0, len(m.ids))
	for id := range m.ids {
		ids = append(ids, id)
	}
	clear(m.ids)
	return ids
}

// grave is a tombstone and its place in the order of removal.
type grave struct {
	Tombstone
	number uint64
}

// Get returns one attachment and its status, or ErrNotFound.
func (s *Store) Get(id string) (Attachment, Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[id]
	if r == nil {
		return Attachment{}, Status{}, ErrNotFound
	}
	return r.attachment, r.status(), nil
}

// ByKey returns the attachment with the caller's key.
func (s *Store) ByKey(key string) (Attachment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[key].snapshot()
}

// ByTarget returns the attachment of the object that t describes, whatever its
// name is by now.
func (s *Store) ByTarget(t target.Target) (Attachment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byTarget[identity(t)].snapshot()
}

// List returns every attachment, those on their way out included, by AttachedAt
// and ID.
func (s *Store) List() []Attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Attachment, len(s.order))
	for i, r := range s.order {
		list[i] = r.attachment
	}
	return list
}

// Len is the length of List.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records)
}

// Changed returns a channel that is closed at the next change of anything: take
// it, then read the latest state, then wait. It carries no data, so nothing can
// be lost in it.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Gone returns the attachments that went and that Forget was not called for, in
// the order in which they went, without those that had a policy of their own. Their consumer is the control client. Those from
// before a start are not here, nor more than may be attached (the oldest fall
// out): that an attachment is gone is seen from List; only the reason is from here.
func (s *Store) Gone() []Tombstone {
	s.mu.Lock()
	defer s.mu.Unlock()
	graves := make([]grave, 0, len(s.gone))
	for _, g := range s.gone {
		graves = append(graves, g)
	}
	slices.SortFunc(graves, func(a, b grave) int { return cmp.Compare(a.number, b.number) })
	list := make([]Tombstone, len(graves))
	for i, g := range graves {
		list[i] = g.Tombstone
	}
	return list
}

// Forget drops a tombstone that its consumer has told of.
func (s *Store) Forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.gone, id)
}

// Close releases the file. What is attached stays as it is.
func (s *Store) Close() error { return s.file.close() }

// insert adds a new record. mu is held, or nobody else knows the store yet.
func (s *Store) insert(r *record) {
	a := &r.attachment
	s.records[a.ID] = r
	at, _ := slices.BinarySearchFunc(s.order, r, (*record).compare)
	s.order = slices.Insert(s.order, at, r)
	if a.Key != "" {
		s.byKey[a.Key] = r
	}
	s.byTarget[identity(a.Target)] = r
	s.dirty.add(a.ID)
	s.moved.add(a.ID)
}

// bury replaces a record by its tombstone. mu is held.
func (s *Store) bury(r *record) {
	a := &r.attachment
	delete(s.records, a.ID)
	if at, found := slices.BinarySearchFunc(s.order, r, (*record).compare); found {
		s.order = slices.Delete(s.order, at, at+1)
	}
	delete(s.byKey, a.Key)
	delete(s.byTarget, identity(a.Target))
	delete(s.dirty.ids, a.ID)
	s.notify(r)
	if a.OwnPolicy {
		return // who reads graves was never told that it was there
	}
	if len(s.gone) >= s.limits.Attachments {
		oldest := grave{number: s.buried}
		for _, g := range s.gone {
			if g.number < oldest.number {
				oldest = g
			}
		}
		delete(s.gone, oldest.ID)
	}
	s.gone[a.ID] = grave{Tombstone{a.ID, a.Target, a.Removing, a.ReasonText}, s.buried}
	s.buried++
}

// notify wakes those who wait for r and those who wait for anything. mu is held.
func (s *Store) notify(r *record) {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// identity is the part of t that target.Same compares, as a key.
func identity(t target.Target) target.Target {
	if t.Type == target.Cgroup {
		return target.Target{Type: t.Type, CgroupID: t.CgroupID}
	}
	return target.Target{Type: t.Type, Ifindex: t.Ifindex, NetnsCookie: t.NetnsCookie, LinkKind: t.LinkKind}
}
