// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/policy"
)

const (
	grantsPerChunk = int(bpfLimitGRANTS_PER_CHUNK)
	maxGrants      = grantsPerChunk * int(bpfLimitMAX_CHUNKS)
	maxName        = int(bpfLimitMAX_NAME)
)

// memory is what an attachment has learned, as nf_names and nf_learned hold it.
// It changes only after the kernel has. Whoever changes it holds attachment.mu
// as well, whoever reads it one of the two; lock attachment.mu first.
type memory struct {
	mu    sync.RWMutex
	names map[uint32]knownName
	ids   map[nameKey]uint32 // of those in names
	addrs map[netip.Addr]grants
	// chunks are those that addrs take in the kernel: an address of many names takes many.
	chunks int
	last   uint32 // the last id given out
	// due is when the sweep next has something to look at; 0: never.
	due time.Duration
}

// nameKey tells names apart: the same one under another grant is another name,
// so that the end of one does not touch the other.
type nameKey struct {
	text  string
	grant uint64 // policy.Grant.Key
	proxy bool
}

type knownName struct {
	nameKey
	learned time.Duration // last, on the boot clock
	cut     uint32        // generation; 0: not cut
}

// grant is one place in the chunks of an address; the zero grant is an empty one.
type grant struct {
	deadline    time.Duration // boot clock
	name        uint32
	first, last uint16
	match       policy.Match
}

// grants are the places of an address in order, in whole chunks. A grant never
// moves: a packet that reads one chunk after the other must not miss it.
type grants []grant

// set puts g in the place of the same grant, or a free one. It only extends.
func (gs grants) set(g grant) grants {
	free := -1
	for i, old := range gs {
		switch {
		case old == grant{}:
			if free < 0 {
				free = i
			}
		case old.name == g.name && old.first == g.first && old.last == g.last && old.match == g.match:
			gs[i].deadline = max(old.deadline, g.deadline)
			return gs
		}
	}
	if free < 0 {
		free = len(gs)
		gs = append(gs, make(grants, grantsPerChunk)...)
	}
	gs[free] = g
	return gs
}

// without clears the places for which gone says so, and gives up empty chunks at the end.
func (gs grants) without(gone func(grant) bool) grants {
	kept := slices.Clone(gs)
	for i, g := range kept {
		if g != (grant{}) && gone(g) {
			kept[i] = grant{}
		}
	}
	for len(kept) > 0 && kept.chunk(len(kept)/grantsPerChunk-1) == ([grantsPerChunk]grant{}) {
		kept = kept[:len(kept)-grantsPerChunk]
	}
	return kept
}

func (gs grants) chunk(i int) (c [grantsPerChunk]grant) {
	if at := i * grantsPerChunk; at < len(gs) {
		copy(c[:], gs[at:])
	}
	return c
}

// grantPlaces are the grants for one set of ports.
func grantPlaces(g policy.Grant) []grant {
	if len(g.Ports) == 0 {
		return []grant{{match: policy.MatchAny}}
	}
	places := make([]grant, len(g.Ports))
	for i, p := range g.Ports {
		places[i] = grant{first: p.First, last: p.Last, match: policy.MatchTCPUDP}
		switch p.Protocol {
		case policy.TCP:
			places[i].match = policy.MatchTCP
		case policy.UDP:
			places[i].match = policy.MatchUDP
		}
	}
	return places
}

// portsOf is the way back. ok is false for a grant of every port.
func portsOf(g grant) (p policy.Ports, ok bool) {
	p = policy.Ports{First: g.first, Last: g.last}
	switch g.match {
	case policy.MatchAny:
		return policy.Ports{}, false
	case policy.MatchTCP:
		p.Protocol = policy.TCP
	case policy.MatchUDP:
		p.Protocol = policy.UDP
	}
	return p, true
}

func canonicalAddr(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// change is what is to become of a memory, and of the kernel before it.
type change struct {
	memory      *memory
	incarnation uint32
	names       map[uint32]knownName  // with new values
	addrs       map[netip.Addr]grants // likewise; none left: the address goes
	dropped     []uint32              // names that go, after all that names them
	grown       int                   // chunks that lessons add
}

func (m *memory) change(incarnation uint32) *change {
	return &change{
		memory: m, incarnation: incarnation,
		names: make(map[uint32]knownName), addrs: make(map[netip.Addr]grants),
	}
}

// grants returns those of an address for being changed.
func (c *change) grants(a netip.Addr) grants {
	if gs, ok := c.addrs[a]; ok {
		return gs
	}
	return slices.Clone(c.memory.addrs[a])
}

// forget takes names away and every grant for which gone says so, or that is of
// one of these names.
func (c *change) forget(names []uint32, gone func(grant) bool) {
	c.dropped = names
	dropped := make(map[uint32]bool, len(names))
	for _, id := range names {
		dropped[id] = true
	}
	for addr, gs := range c.memory.addrs {
		kept := gs.without(func(g grant) bool { return dropped[g.name] || gone(g) })
		if !slices.Equal(kept, gs) {
			c.addrs[addr] = kept
		}
	}
}

// edit is one map entry before and after. before is asked for only when the edit
// has to be undone, which is rare; nil: there is none.
type edit struct {
	m      *ebpf.Map
	key    []byte
	before func() []byte
	after  []byte // nil: the entry goes
}

func (e edit) do() error { return e.write(e.after) }

func (e edit) undo() error {
	if e.before == nil {
		return e.write(nil)
	}
	return e.write(e.before())
}

func (e edit) write(value []byte) error {
	if value != nil {
		return e.m.Put(e.key, value)
	}
	if err := e.m.Delete(e.key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// memoryOf is v as the kernel reads it. The types of types.h have no padding, so
// there is nothing in it that nobody wrote; passing v itself has it looked at by
// reflection each time.
func memoryOf[T bpfNameKey | bpfName | bpfLearnedKey | bpfLearned](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// edits are in the order in which they must be done: no grant without its name.
func (c *change) edits(b *bpfMaps) []edit {
	list := make([]edit, 0, len(c.names)+len(c.addrs)+len(c.dropped))
	for _, id := range slices.Sorted(maps.Keys(c.names)) {
		e := c.nameEdit(b, id)
		e.after = memoryOf(kernelName(c.incarnation, id, c.names[id]))
		list = append(list, e)
	}
	for addr, after := range c.addrs {
		before := c.memory.addrs[addr]
		for i := range max(len(before), len(after)) / grantsPerChunk {
			list = appendChunk(list, b, c.incarnation, addr, i, before, after)
		}
	}
	for _, id := range c.dropped {
		list = append(list, c.nameEdit(b, id))
	}
	return list
}

// nameEdit takes the name away.
func (c *change) nameEdit(b *bpfMaps, id uint32) edit {
	e := edit{m: b.NfNames, key: memoryOf(&bpfNameKey{Incarnation: c.incarnation, Id: id})}
	if old, ok := c.memory.names[id]; ok {
		e.before = func() []byte { return memoryOf(kernelName(c.incarnation, id, old)) }
	}
	return e
}

func appendChunk(list []edit, b *bpfMaps, incarnation uint32, addr netip.Addr, i int, before, after grants) []edit {
	key := &bpfLearnedKey{Incarnation: incarnation, Chunk: uint32(i)}
	key.Address.Word = networkWords(addr)
	e := edit{m: b.NfLearned, key: memoryOf(key)}
	if i*grantsPerChunk < len(before) {
		old := before.chunk(i)
		e.before = func() []byte { return memoryOf(kernelChunk(*key, old)) }
	}
	if i*grantsPerChunk < len(after) {
		now := after.chunk(i)
		if e.before != nil && before.chunk(i) == now {
			return list
		}
		e.after = memoryOf(kernelChunk(*key, now))
	}
	return append(list, e)
}

// apply does the edits, all or none.
func apply(edits []edit) error {
	for i, e := range edits {
		err := e.do()
		if err == nil {
			continue
		}
		errs := []error{full(err)}
		for _, done := range slices.Backward(edits[:i]) {
			errs = append(errs, done.undo())
		}
		return errors.Join(errs...)
	}
	return nil
}

// room counts what the maps hold for all attachments.
type room struct {
	names, chunks atomic.Int64
}

// commit makes the memory what the kernel is by now.
func (c *change) commit(all *room) {
	m := c.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func(names int) { all.names.Add(int64(len(m.names) - names)) }(len(m.names))
	grown := 0
	for addr, gs := range c.addrs {
		grown += (len(gs) - len(m.addrs[addr])) / grantsPerChunk
	}
	m.chunks += grown
	all.chunks.Add(int64(grown))
	if m.names == nil {
		m.names, m.ids, m.addrs = make(map[uint32]knownName), make(map[nameKey]uint32), make(map[netip.Addr]grants)
	}
	for id, n := range c.names {
		m.names[id], m.ids[n.nameKey] = n, id
		m.last = max(m.last, id)
	}
	for addr, gs := range c.addrs {
		if len(gs) == 0 {
			delete(m.addrs, addr)
			continue
		}
		m.addrs[addr] = gs
		for _, g := range gs {
			m.expect(g.deadline)
		}
	}
	for _, id := range c.dropped {
		if n := m.names[id]; m.ids[n.nameKey] == id {
			delete(m.ids, n.nameKey)
		}
		delete(m.names, id)
	}
	if len(m.names) == 0 && len(m.addrs) == 0 {
		m.names, m.ids, m.addrs, m.due = nil, nil, nil, 0
	}
}

// expect has the sweep look at a grant when it is over; 0: no grant.
func (m *memory) expect(deadline time.Duration) {
	if deadline != 0 && (m.due == 0 || deadline < m.due) {
		m.due = deadline
	}
}

func kernelName(incarnation, id uint32, n knownName) *bpfName {
	k := &bpfName{
		Key:     bpfNameKey{Incarnation: incarnation, Id: id},
		Learned: uint64(n.learned), Grant: n.grant, Cut: n.cut, Length: uint8(len(n.text)),
	}
	if n.proxy {
		k.Proxy = 1
	}
	copy(k.Text[:], n.text)
	return k
}

func nameFromKernel(k *bpfName) knownName {
	return knownName{
		nameKey: nameKey{text: string(k.Text[:min(int(k.Length), maxName)]), grant: k.Grant, proxy: k.Proxy != 0},
		learned: time.Duration(k.Learned), cut: k.Cut,
	}
}

func kernelChunk(key bpfLearnedKey, chunk [grantsPerChunk]grant) *bpfLearned {
	k := &bpfLearned{Key: key}
	for i, g := range chunk {
		k.Grants[i] = bpfGrant{Deadline: uint64(g.deadline), Name: g.name, First: g.first, Last: g.last, Match: uint8(g.match)}
	}
	return k
}

func grantFromKernel(k bpfGrant) grant {
	return grant{deadline: time.Duration(k.Deadline), name: k.Name, first: k.First, last: k.Last, match: policy.Match(k.Match)}
}

// addrFromWords is the way back from networkWords.
func addrFromWords(w [4]uint32) netip.Addr {
	var b [16]byte
	for i, word := range w {
		binary.NativeEndian.PutUint32(b[4*i:], word)
	}
	return netip.AddrFrom16(b).Unmap()
}

// BootClock reads the clock of bpf_ktime_get_boot_ns: suspend counts.
func BootClock() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("boot clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
