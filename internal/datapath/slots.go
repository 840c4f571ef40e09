// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"github.com/netfence/netfence/policy"
)

// slots gives each distinct table a place in nf_tables and nf_clauses, shared
// by all attachments with the same rules. A table is built before any word
// names its slot, never changed while one does, and emptied only after every
// packet that could have read such a word is done.
type slots struct {
	bpf  *bpfMaps
	log  *slog.Logger
	mu   sync.Mutex // guards all below
	used map[[32]byte]*slot
	free []uint32 // the one that was given back first in front
	// spares are made from free ones, up to as many as are wanted.
	spares []spare
	wanted int
	// cooling slots are named by no word; packets in flight may still read them.
	cooling []uint32
	work    chan struct{} // holds one token when there is something to reap or to prepare
}

// slot is one table in the kernel. 0 is not a slot but "no rules".
type slot struct {
	index uint32
	hash  [32]byte
	users int
	ready chan struct{} // closed when built
	err   error         // set before ready is closed
}

// adoptSlots takes over the slots that words name and lets the others cool:
// some were being built or emptied when a daemon died, or spares of its.
func adoptSlots(bpf *bpfMaps, inUse map[uint32]int, spares int, log *slog.Logger) (*slots, map[uint32]*slot, error) {
	contents, err := readArray[bpfSlotContent](bpf.NfSlots)
	if err != nil {
		return nil, nil, fmt.Errorf("read slots: %w", err)
	}
	s := &slots{bpf: bpf, log: log, used: make(map[[32]byte]*slot), wanted: spares, work: make(chan struct{}, 1)}
	adopted := make(map[uint32]*slot, len(inUse))
	built := make(chan struct{})
	close(built)
	for i := 1; i < len(contents); i++ {
		index, content := uint32(i), contents[i]
		switch {
		case inUse[index] > 0:
			sl := &slot{index: index, hash: content.Hash, users: inUse[index], ready: built}
			s.used[content.Hash], adopted[index] = sl, sl
		case content != (bpfSlotContent{}):
			s.cooling = append(s.cooling, index)
		default:
			s.free = append(s.free, index)
		}
	}
	s.wake()
	return s, adopted, nil
}

// acquire returns the slot that holds t, building it if nobody else has.
// A nil table needs none.
func (s *slots) acquire(t *policy.Table) (*slot, error) {
	if t == nil {
		return nil, nil
	}
	hash := t.Hash()
	s.mu.Lock()
	if sl := s.used[hash]; sl != nil {
		sl.users++
		s.mu.Unlock()
		<-sl.ready
		if sl.err != nil {
			return nil, sl.err
		}
		return sl, nil
	}
	place, err := s.take()
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	sl := &slot{index: place.index, hash: hash, users: 1, ready: make(chan struct{})}
	s.used[hash] = sl
	s.mu.Unlock()

	sl.err = errors.Join(s.build(place, hash, t), place.close())
	if sl.err != nil {
		s.mu.Lock()
		delete(s.used, hash)
		s.retire(place.index)
		s.mu.Unlock()
	}
	close(sl.ready)
	return sl, sl.err
}

// release gives one use back.
func (s *slots) release(sl *slot) {
	if sl == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl.users--; sl.users == 0 {
		delete(s.used, sl.hash)
		s.retire(sl.index)
	}
}

func (s *slots) retire(index uint32) {
	s.cooling = append(s.cooling, index)
	s.wake()
}

func (s *slots) wake() {
	select {
	case s.work <- struct{}{}:
	default:
	}
}

// retryAfter is how long slots wait that the kernel had no memory to empty, or
// to prepare.
const retryAfter = time.Second

// run prepares spares and empties slots that have cooled, until ctx is done.
// Those that it does not get to are found again by the next daemon.
func (s *slots) run(ctx context.Context) {
	for {
		var retry <-chan time.Time
		if err := errors.Join(s.prepare(), s.reap(ctx)); err != nil {
			s.log.Warn("rule tables are prepared or freed later", "err", err)
			retry = time.After(retryAfter)
		}
		select {
		case <-ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			if err := closeSpares(s.spares); err != nil {
				s.log.Warn("rule tables not closed", "err", err)
			}
			s.spares = nil
			return
		case <-s.work:
		case <-retry:
		}
	}
}

// reap empties what has cooled.
func (s *slots) reap(ctx context.Context) error {
	s.mu.Lock()
	batch := s.cooling
	s.cooling = nil
	s.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	if err := s.grace(); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cooling = append(s.cooling, batch...)
		return fmt.Errorf("free %d rule tables: %w", len(batch), err)
	}
	if err := s.emptyAll(ctx, batch); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spares) < s.wanted {
		s.wake()
	}
	return nil
}

// grace returns when every packet that was being judged at the call is done: an
// update of a map of maps waits for RCU in the system call (kernel/bpf/syscall.c,
// maybe_wait_bpf_programs), and programs run inside one RCU section. Slot 0 is
// named by no lookup.
func (s *slots) grace() error {
	none, err := newTable(0)
	if err != nil {
		return err
	}
	return errors.Join(s.bpf.NfTables.Put(uint32(0), none), closeBPF(none))
}

// emptyAll frees slots, some at once since each waits for RCU. It stops early
// when ctx is done. What it cannot empty goes on cooling.
func (s *slots) emptyAll(ctx context.Context, indexes []uint32) error {
	errs := make([]error, len(indexes))
	var g errgroup.Group
	g.SetLimit(maxSpares)
	for i, index := range indexes {
		if ctx.Err() != nil {
			s.log.Debug("rule tables left to the next start", "tables", len(indexes)-i)
			break
		}
		g.Go(func() error {
			errs[i] = s.empty(index)
			return nil
		})
	}
	_ = g.Wait() // each error has its place
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, err := range errs {
		if err != nil {
			s.cooling = append(s.cooling, indexes[i])
		}
	}
	return errors.Join(errs...)
}

func (s *slots) empty(index uint32) error {
	for _, outer := range []*ebpf.Map{s.bpf.NfTables, s.bpf.NfClauses, s.bpf.NfSources} {
		if err := outer.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("slot %d: %w", index, err)
		}
	}
	if err := s.bpf.NfSlots.Put(index, &bpfSlotContent{}); err != nil {
		return fmt.Errorf("slot %d: %w", index, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, index)
	return nil
}

// build fills a slot that no word names. The content is noted first, so that a
// crash at any point leaves a slot that the next daemon knows to empty.
func (s *slots) build(place spare, hash [32]byte, t *policy.Table) error {
	if err := s.bpf.NfSlots.Put(place.index, &bpfSlotContent{Hash: hash}); err != nil {
		return fmt.Errorf("note slot: %w", err)
	}
	tableFits, clausesFit := place.takes(t)
	var g errgroup.Group // they wait for RCU at once
	if tableFits {
		g.Go(func() error { return fillTable(place.table, t) })
	} else {
		g.Go(func() error { return s.placeTable(place.index, t) })
	}
	switch {
	case len(t.Clauses) == 1 && t.Clauses[0] == policy.Clause{}: // no chain reaches any
	case clausesFit:
		g.Go(func() error { return fillClauses(place.clauses, t) })
	default:
		g.Go(func() error { return s.placeClauses(place.index, t) })
	}
	if len(t.Sources) > 0 {
		g.Go(func() error { return s.placeSources(place.index, t) })
	}
	return g.Wait()
}

func fillTable(m *ebpf.Map, t *policy.Table) error {
	keys := make([]bpfPrefix, len(t.Entries))
	values := make([]bpfClause, len(t.Entries))
	for i, e := range t.Entries {
		keys[i], values[i] = kernelPrefix(e.Prefix), kernelClause(e.Clause)
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("fill rule table of %d prefixes: %w", len(keys), err)
	}
	return nil
}

func (s *slots) placeTable(index uint32, t *policy.Table) error {
	m, err := newTable(len(t.Entries))
	if err != nil {
		return err
	}
	if err := fillTable(m, t); err != nil {
		return errors.Join(err, closeBPF(m))
	}
	if err := s.bpf.NfTables.Put(index, m); err != nil {
		return errors.Join(fmt.Errorf("place rule table: %w", err), closeBPF(m))
	}
	return closeBPF(m)
}

// newTable has room for one entry more: before 6.1.120 a full trie cannot be updated.
func newTable(entries int) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "nf_table", Type: ebpf.LPMTrie, Flags: bpfNoPrealloc,
		KeySize: prefixSize, ValueSize: clauseSize, MaxEntries: uint32(entries) + 1,
	})
	if err != nil {
		return nil, fmt.Errorf("create rule table of %d prefixes: %w", entries, err)
	}
	return m, nil
}

func fillClauses(m *ebpf.Map, t *policy.Table) error {
	keys := make([]uint32, len(t.Clauses))
	values := make([]bpfClause, len(t.Clauses))
	for i, c := range t.Clauses {
		keys[i], values[i] = uint32(i), kernelClause(c)
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("fill %d clauses: %w", len(keys), err)
	}
	return nil
}

func (s *slots) placeClauses(index uint32, t *policy.Table) error {
	m, err := newClauses(len(t.Clauses))
	if err != nil {
		return err
	}
	if err := fillClauses(m, t); err != nil {
		return errors.Join(err, closeBPF(m))
	}
	if err := s.bpf.NfClauses.Put(index, m); err != nil {
		return errors.Join(fmt.Errorf("place clauses: %w", err), closeBPF(m))
	}
	return closeBPF(m)
}

func newClauses(n int) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "nf_clauses", Type: ebpf.Array, Flags: bpfInnerMap,
		KeySize: 4, ValueSize: clauseSize, MaxEntries: uint32(n),
	})
	if err != nil {
		return nil, fmt.Errorf("create %d clauses: %w", n, err)
	}
	return m, nil
}

func (s *slots) placeSources(index uint32, t *policy.Table) error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "nf_sources", Type: ebpf.Array, KeySize: 4, ValueSize: sourceSize, MaxEntries: uint32(bpfLimitMAX_SOURCES),
	})
	if err != nil {
		return fmt.Errorf("create %d sources: %w", len(t.Sources), err)
	}
	for i, source := range t.Sources {
		k := kernelSource(source)
		if err := m.Put(uint32(i), &k); err != nil {
			return errors.Join(fmt.Errorf("fill %d sources: %w", len(t.Sources), err), closeBPF(m))
		}
	}
	if err := s.bpf.NfSources.Put(index, m); err != nil {
		return errors.Join(fmt.Errorf("place sources: %w", err), closeBPF(m))
	}
	return closeBPF(m)
}

// kernelPrefix takes the 128-bit form: no byte order to get wrong.
func kernelPrefix(p netip.Prefix) bpfPrefix {
	key := bpfPrefix{Length: uint32(p.Bits())}
	key.Address.Word = networkWords(p.Addr())
	return key
}
