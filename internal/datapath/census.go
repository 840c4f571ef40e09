// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// censusBatch is how many entries of a map are read at once.
const censusBatch = 4096

// Census is what all attachments count at one time.
type Census struct {
	Counters map[string]Counters // by id
	// Ended sums up the attachments that are gone and that this process has known:
	// with it, what all together have counted never becomes less.
	Ended Counters
	// Flows and Learned are the flows and the learned addresses that are held,
	// those that are over and not swept yet included.
	Flows, Learned uint64
}

// Sum is what the attachments have counted that there are.
func (c *Census) Sum() Counters {
	var sum Counters
	for _, counters := range c.Counters {
		sum.Add(counters)
	}
	return sum
}

// Add adds what another attachment has counted.
func (c *Counters) Add(other Counters) {
	c.PacketsAllowed += other.PacketsAllowed
	c.BytesAllowed += other.BytesAllowed
	c.PacketsDropped += other.PacketsDropped
	c.BytesDropped += other.BytesDropped
	c.PacketsWouldDeny += other.PacketsWouldDeny
	c.FlowsUnnoted += other.FlowsUnnoted
	addTo(&c.Drops, other.Drops)
	addTo(&c.WouldDeny, other.WouldDeny)
}

func addTo(sums *map[string]uint64, counts map[string]uint64) {
	for reason, n := range counts {
		if *sums == nil {
			*sums = make(map[string]uint64)
		}
		(*sums)[reason] += n
	}
}

// Census reads the counters of all attachments: 10,000 in some tenths of a
// second. Nothing waits for it.
func (d *Datapath) Census() (Census, error) {
	d.mu.Lock()
	known := make(map[string]*attachment, len(d.known))
	for id, a := range d.known {
		if a.counts.Load() {
			known[id] = a
		}
	}
	d.mu.Unlock()
	census, err := d.count(known)
	if err != nil {
		return Census{}, fmt.Errorf("counters of all attachments: %w", err)
	}
	// Those that have ended meanwhile are counted there, and somebody else may
	// have had their index when it was read.
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, a := range known {
		if d.known[id] != a {
			delete(census.Counters, id)
		}
	}
	census.Ended.Add(d.ended)
	return census, nil
}

// count reads the maps from their beginning to the last index in use, or what
// belongs to the attachments alone if that is less.
func (d *Datapath) count(known map[string]*attachment) (Census, error) {
	census := Census{Counters: make(map[string]Counters, len(known))}
	end := uint32(0)
	for _, a := range known {
		end = max(end, a.index+1)
		a.memory.mu.RLock()
		census.Learned += uint64(len(a.memory.addrs))
		a.memory.mu.RUnlock()
	}
	if len(known)*sparse < int(end) {
		return census, d.countEach(known, &census)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return census, err
	}
	verdicts := make([]Counters, end)
	err = readFirst(d.bpf.NfCounters, end, cpus, func(index uint32, perCPU []bpfCounters) {
		verdicts[index] = sumCPUs(perCPU)
	})
	if err != nil {
		return census, err
	}
	err = readFirst(d.bpf.NfDrops, end*maxReasons, 1, func(at uint32, n []uint64) {
		if n[0] > 0 {
			verdicts[at/maxReasons].addDrops(at%maxReasons, n[0])
		}
	})
	if err != nil {
		return census, err
	}
	err = readFirst(d.bpf.NfAudited, end*maxReasons, 1, func(at uint32, n []uint64) {
		if n[0] > 0 {
			verdicts[at/maxReasons].addAudited(at%maxReasons, n[0])
		}
	})
	if err != nil {
		return census, err
	}
	flows := make([]uint64, end)
	err = readFirst(d.bpf.NfFlowCounts, end, 1, func(index uint32, n []uint64) { flows[index] = n[0] })
	for id, a := range known {
		census.Counters[id] = verdicts[a.index]
		census.Flows += flows[a.index]
	}
	return census, err
}

// sparse is how many entries of a map are read in a batch in the time of one lookup.
const sparse = 8

func (d *Datapath) countEach(known map[string]*attachment, census *Census) error {
	for id, a := range known {
		c, err := d.readCounters(a.index)
		if err != nil {
			return err
		}
		census.Counters[id] = c
		var flows uint64
		if err := d.bpf.NfFlowCounts.Lookup(a.index, &flows); err != nil {
			return err
		}
		census.Flows += flows
	}
	return nil
}

// readFirst hands the entries of an array before end to each. One of an array
// that is not per CPU is one value: cpus is 1.
func readFirst[T any](m *ebpf.Map, end uint32, cpus int, each func(index uint32, values []T)) error {
	var cursor ebpf.MapBatchCursor
	keys := make([]uint32, min(end, censusBatch))
	values := make([]T, len(keys)*cpus)
	for at := uint32(0); at < end; {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which is how a map ends
			return err
		}
		for i := range uint32(n) {
			if at+i < end {
				each(at+i, values[int(i)*cpus:int(i+1)*cpus])
			}
		}
		at += uint32(n)
		if err != nil && at < end {
			return fmt.Errorf("%d entries of %d: %w", at, end, err)
		}
	}
	return nil
}
