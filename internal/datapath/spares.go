// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"github.com/netfence/netfence/policy"
)

// An update of a map of maps waits for RCU, 8 ms or more; one of a map that is
// in there already does not. So some slots are kept with empty maps in place,
// and a policy that fits into those of one is in force without that wait.
const (
	maxSpares    = 32
	spareEntries = 1 << 16 // of a trie, which takes memory for those only that it holds
	spareClauses = 64      // 3 KiB
)

func (c Config) spares() int {
	if c.MaxAttachments <= 0 {
		return maxSpares
	}
	return min(maxSpares, c.MaxAttachments)
}

// spareHash is what the slot of a spare is noted with: the next daemon empties
// it. It is the SHA-256 of no table.
var spareHash = [32]byte{31: 1}

// spare is a slot that no word names. Its maps are empty and in place; a slot
// without any, for which none were made, is one too.
type spare struct {
	index          uint32
	table, clauses *ebpf.Map
}

func (s *spare) close() error {
	return closeBPF(s.table, s.clauses)
}

// takes reports whether t's rules go into the maps that are in place.
func (s *spare) takes(t *policy.Table) (table, clauses bool) {
	if s.table == nil {
		return false, false
	}
	return len(t.Entries) <= spareEntries, len(t.Clauses) <= spareClauses
}

// take gives a slot out, one that is prepared if there is any. The caller has
// s.mu.
func (s *slots) take() (spare, error) {
	defer s.wake() // for another in its place
	if len(s.spares) > 0 {
		first := s.spares[0]
		s.spares = s.spares[1:]
		return first, nil
	}
	if len(s.free) == 0 {
		return spare{}, fmt.Errorf("%w: %d distinct rule tables", ErrFull, s.bpf.NfTables.MaxEntries()-1)
	}
	index := s.free[0]
	s.free = s.free[1:]
	return spare{index: index}, nil
}

// prepare makes as many spares as are missing. It waits for RCU twice, however
// many that are.
func (s *slots) prepare() error {
	s.mu.Lock()
	n := min(s.wanted-len(s.spares), len(s.free))
	indexes := s.free[:n:n]
	s.free = s.free[n:]
	s.mu.Unlock()
	if n == 0 {
		return nil
	}
	made, err := s.makeSpares(indexes)
	if err != nil {
		err = errors.Join(err, closeSpares(made), s.emptyAll(context.Background(), indexes))
		return fmt.Errorf("prepare %d rule tables: %w", n, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spares = append(s.spares, made...)
	return nil
}

func (s *slots) makeSpares(indexes []uint32) (made []spare, err error) {
	contents := make([]bpfSlotContent, len(indexes))
	tables, clauses := make([]uint32, len(indexes)), make([]uint32, len(indexes))
	for i, index := range indexes {
		one := spare{index: index}
		if one.table, err = newTable(spareEntries); err != nil {
			return made, err
		}
		if one.clauses, err = newClauses(spareClauses); err != nil {
			return made, errors.Join(err, closeBPF(one.table))
		}
		made = append(made, one)
		contents[i].Hash = spareHash
		tables[i], clauses[i] = uint32(one.table.FD()), uint32(one.clauses.FD())
	}
	if _, err := s.bpf.NfSlots.BatchUpdate(indexes, contents, nil); err != nil {
		return made, fmt.Errorf("note slots: %w", err)
	}
	var g errgroup.Group // they wait for RCU at once
	g.Go(func() error { _, err := s.bpf.NfTables.BatchUpdate(indexes, tables, nil); return err })
	g.Go(func() error { _, err := s.bpf.NfClauses.BatchUpdate(indexes, clauses, nil); return err })
	return made, g.Wait()
}

func closeSpares(all []spare) error {
	var errs []error
	for _, one := range all {
		errs = append(errs, one.close())
	}
	return errors.Join(errs...)
}
