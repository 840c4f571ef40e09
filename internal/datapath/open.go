// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
)

// Open creates the maps, or adopts the pinned ones of an earlier daemon. What a crash
// left half attached or half detached is removed.
//
// This daemon's programs take the place of the earlier one's afterwards, of many
// attachments by and by, but of each before Attach returns and before a policy is put in
// force for it. Filtering does not pause: a program is changed in one step, and both use
// the same maps.
func Open(cfg Config) (*Datapath, error) {
	p := pins(cfg.Dir)
	version, err := p.pinned()
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Datapath{
		config: cfg, pins: p, log: cfg.Log, only: cfg.Only, limits: cfg.learningLimits(),
		problems: problems{log: cfg.Log},
		known:    make(map[string]*attachment), byIndex: make([]atomic.Pointer[attachment], maxAttachments),
		renewed: make(chan struct{}),
	}
	if err := d.load(cfg, version); err != nil {
		return nil, err
	}
	if err := d.choose(cfg.InterfaceHook); err != nil {
		return nil, errors.Join(err, closeBPF(&d.bpf))
	}
	if err := d.unlisten(); err != nil {
		return nil, errors.Join(err, closeBPF(&d.bpf))
	}
	d.earlier.ours = d.ours
	if err := d.adopt(); err != nil {
		return nil, errors.Join(err, closeBPF(&d.bpf))
	}
	if d.only != Cgroups {
		o, err := newOnLink(d)
		if err != nil {
			return nil, errors.Join(err, closeBPF(&d.bpf))
		}
		d.onLink = o
	}
	if cfg.Events != nil {
		w, err := newWitness(d, cfg.Events)
		if err != nil {
			return nil, errors.Join(err, d.onLink.close(), closeBPF(&d.bpf))
		}
		d.witness = w
		d.done.Go(w.run)
	}
	if d.onLink != nil {
		d.done.Go(d.onLink.run)
	}
	ctx, stop := context.WithCancel(context.Background())
	d.stop = stop
	adopted := slices.Collect(maps.Values(d.known))
	d.done.Go(func() {
		defer close(d.renewed)
		d.renewErr = d.renewAll(ctx, adopted)
	})
	d.done.Go(func() { d.sweep(ctx) })
	d.done.Go(func() { d.slots.run(ctx) })
	return d, nil
}

// load makes or opens all that Open needs. It writes nothing to what is pinned before it has all,
// so that a build that cannot run here leaves it to the one that did.
func (d *Datapath) load(cfg Config, version int) (err error) {
	// The types of the kernel take a while to read; whoever needs them gets the error.
	kernel := btf.NewCache()
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = kernel.Kernel() })
	defer reading.Wait()
	spec, err := cfg.spec()
	if err != nil {
		return err
	}
	opened, err := d.pins.openMaps(version, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeMaps(opened)) }() // the maps in use are copies
	toPin := unpinned(spec)
	err = cfg.assign(&d.bpf, spec, opened, kernel)
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("load programs: %w (needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)", err)
	case err != nil:
		return fmt.Errorf("load programs: %w (needs Linux 6.1 with BTF)", err)
	}
	made := fields[ebpf.Map](&d.bpf.bpfMaps)
	err = d.pins.takeOver(version)
	if err == nil {
		err = d.pins.create()
	}
	if err == nil {
		err = d.pins.pinMaps(made, opened, toPin)
	}
	if err == nil {
		d.ours, err = d.pins.oursOf(made, toPin)
	}
	if err == nil {
		d.lessons, err = d.bpf.NfLessons.Memory()
	}
	if err != nil {
		return errors.Join(err, closeBPF(&d.bpf))
	}
	return nil
}

// spec is what is to be loaded, with the limits in place.
func (c Config) spec() (*ebpf.CollectionSpec, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	if err := limitEvents(spec, c); err != nil {
		return nil, err
	}
	netns, err := target.NetnsCookie()
	if err != nil {
		return nil, err
	}
	for _, limit := range []struct {
		key, variable string
		value         uint64
	}{
		{"network namespace", bpfVarOwnNetns, netns},
		{"limits.flows", bpfVarMaxFlowsPerAttachment, c.MaxFlows},
		{"dns.max_flow", bpfVarMaxFlowTcp, nanoseconds(c.MaxFlowTCP)},
		{"dns.max_flow", bpfVarMaxFlowOther, nanoseconds(c.MaxFlowOther)},
		{"kernel tick", bpfVarTick, nanoseconds(tick())},
	} {
		if limit.value == 0 {
			continue // what the programs come with
		}
		if err := spec.Variables[limit.variable].Set(limit.value); err != nil {
			return nil, fmt.Errorf("%s: %w", limit.key, err)
		}
	}
	c.shrink(spec)
	return spec, nil
}

func nanoseconds(d time.Duration) uint64 { return uint64(max(d, 0)) }

// tick is a jiffy: the coarse clocks advance with it (kernel/time/posix-timers.c).
// 0 if that can not be known.
func tick() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// adopt reads what the kernel holds. Order matters: links of unfinished work
// first, so that a record without published links is known to be a leftover.
func (d *Datapath) adopt() error {
	if err := d.pins.sweep(d.ours); err != nil {
		return err
	}
	records, err := readArray[bpfAttachment](d.bpf.NfAttachments)
	if err != nil {
		return fmt.Errorf("read attachments: %w", err)
	}
	words, err := readArray[uint64](d.bpf.NfWords)
	if err != nil {
		return fmt.Errorf("read policy words: %w", err)
	}
	inUse := make(map[uint32]int)
	for i := 1; i < len(records); i++ {
		index, r := uint32(i), records[i]
		if r.Incarnation == 0 {
			if generation(words[i]) < wornGeneration {
				d.indices.free = append(d.indices.free, index)
			}
			continue
		}
		id := uuid.UUID(r.Id).String()
		a := &attachment{index: index, record: r, word: words[i], intact: time.Now()}
		if _, err := os.Stat(d.pins.attached(id)); errors.Is(err, fs.ErrNotExist) {
			d.log.Info("unfinished attachment removed", "attachment", id)
			if err := errors.Join(d.ours.leave(r), d.forget(a)); err != nil {
				return fmt.Errorf("attachment %s: remove what a crash left: %w", id, err)
			}
			d.indices.release(a)
			continue
		} else if err != nil {
			return fmt.Errorf("attachment %s: %w", id, err)
		}
		a.counts.Store(true)
		a.earlier = true
		d.known[id] = a
		d.nesting.adopt(a)
		d.byIndex[index].Store(a)
		if s := wordSlot(a.word); s != 0 {
			inUse[s]++
		}
	}
	if err := d.adoptPlaces(); err != nil {
		return err
	}
	slots, adopted, err := adoptSlots(&d.bpf.bpfMaps, inUse, d.config.spares(), d.log)
	if err != nil {
		return err
	}
	d.slots = slots
	for _, a := range d.known {
		a.slot = adopted[wordSlot(a.word)]
	}
	now, err := BootClock()
	if err != nil {
		return err
	}
	if err := d.loadLease(); err != nil {
		return err
	}
	if err := d.remember(now); err != nil {
		return err
	}
	if err := d.sweepUnknown(); err != nil {
		return err
	}
	// Ids of names that are gone may be given out again: no flow may still have one.
	return d.endFlows(0) // a crash may have come between a policy and the end of the flows that it denies
}

// readArray copies a whole array map.
func readArray[V any](m *ebpf.Map) ([]V, error) {
	keys := make([]uint32, m.MaxEntries())
	values := make([]V, m.MaxEntries())
	var cursor ebpf.MapBatchCursor
	n, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, err
	}
	return values[:n], nil
}
