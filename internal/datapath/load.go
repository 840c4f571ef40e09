// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sync/errgroup"
)

// Only narrows what can be attached.
type Only uint8

// What a Datapath is opened for.
const (
	Everything Only = iota
	Cgroups         // interfaces are refused: their programs are not loaded
)

// Of a Datapath for few attachments. Slots are more than attachments because
// each that a policy leaves cools before it is used again.
const (
	fewSlots = 1024
	fewBytes = 1 << 16 // of the ring of events
	// fewEntries is how many entries for one attachment a map has that bounds what each
	// attachment has in it some other way. A limit that is configured higher makes it more.
	fewEntries = 16384
)

// shrink gives the maps room for MaxAttachments instead of as many as there can be.
func (c Config) shrink(spec *ebpf.CollectionSpec) {
	if c.MaxAttachments <= 0 {
		return
	}
	n := min(uint32(c.MaxAttachments), maxAttachments-1)
	each := max(fewEntries, 2*uint32(c.MaxFlows), 2*uint32(c.MaxLearned), 2*uint32(c.MaxNames))
	for _, m := range spec.Maps {
		switch {
		case m.MaxEntries == maxAttachments:
			m.MaxEntries = n + 1
		case m.MaxEntries == maxAttachments*maxReasons:
			m.MaxEntries = (n + 1) * maxReasons
		case m.MaxEntries == uint32(bpfLimitMAX_SLOTS):
			m.MaxEntries = fewSlots
		case m.MaxEntries == uint32(bpfLimitINTERFACE_PLACES) && c.Only == Cgroups:
			m.MaxEntries = 1
		case m.Type == ebpf.RingBuf:
			m.MaxEntries = min(m.MaxEntries, fewBytes)
		case m.Type == ebpf.Hash:
			m.MaxEntries = uint32(min(uint64(m.MaxEntries), uint64(n)*uint64(each)))
		}
	}
}

// assign loads maps and programs into objects, with the maps that are open already. Most of it is
// the verifier's time, so the programs are loaded side by side, the largest first.
func (c Config) assign(objects *bpfObjects, spec *ebpf.CollectionSpec, opened map[string]*ebpf.Map, kernel *btf.Cache) (err error) {
	shared, err := ebpf.NewCollectionWithOptions(
		&ebpf.CollectionSpec{Maps: spec.Maps, Variables: spec.Variables, Types: spec.Types, ByteOrder: spec.ByteOrder},
		ebpf.CollectionOptions{MapReplacements: opened, Cache: kernel},
	)
	if err != nil {
		return err
	}
	defer closeCollection(shared) // what is not assigned

	programs := fields[ebpf.Program](&objects.bpfPrograms)
	defer func() {
		if err != nil {
			err = errors.Join(err, closeBPF(&objects.bpfPrograms))
		}
	}()
	names := slices.SortedFunc(maps.Keys(programs), func(a, b string) int {
		return cmp.Compare(len(spec.Programs[b].Instructions), len(spec.Programs[a].Instructions))
	})
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range names {
		program := spec.Programs[name]
		if c.Only == Cgroups && program.Type == ebpf.SchedCLS && name != bpfProgNfDnsOriginal { // which no interface has
			continue
		}
		g.Go(func() error {
			one, err := ebpf.NewCollectionWithOptions(
				&ebpf.CollectionSpec{
					Maps: spec.Maps, Programs: map[string]*ebpf.ProgramSpec{name: program}, Types: spec.Types, ByteOrder: spec.ByteOrder,
				},
				ebpf.CollectionOptions{MapReplacements: shared.Maps, Cache: kernel},
			)
			if err != nil {
				return fmt.Errorf("program %s: %w", name, err)
			}
			defer closeCollection(one) // the maps are copies
			*programs[name] = one.Programs[name]
			delete(one.Programs, name)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return errors.Join(shared.Assign(&objects.bpfMaps), shared.Assign(&objects.bpfVariables))
}

// fields finds those of a generated struct by the names of what they hold.
func fields[T any](objects any) map[string]**T {
	found := make(map[string]**T)
	v := reflect.ValueOf(objects).Elem()
	for i := range v.NumField() {
		if field, ok := v.Field(i).Addr().Interface().(**T); ok {
			found[v.Type().Field(i).Tag.Get("ebpf")] = field
		}
	}
	return found
}
