// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/google/uuid"

	"github.com/netfence/netfence/internal/events"
)

// tallyInterval is how soon it is told that events were lost when none follows them.
const tallyInterval = time.Second

// limitEvents sets how fast the programs tell of drops, and how much room they have for it.
func limitEvents(spec *ebpf.CollectionSpec, cfg Config) error {
	ring := spec.Maps[bpfMapNfEvents]
	if cfg.Events == nil {
		ring.MaxEntries = uint32(os.Getpagesize()) // none is smaller
		return nil
	}
	rate := cfg.EventRate
	if rate <= 0 {
		rate = events.DefaultRate
	}
	interval := max(time.Second/time.Duration(rate), 1)
	if err := spec.Variables[bpfVarEventInterval].Set(uint64(interval)); err != nil {
		return fmt.Errorf("events.rate: %w", err)
	}
	return nil
}

// witness hands on what the programs tell of. One goroutine reads; what it
// needs to know of an attachment it asks the kernel, so it waits for nobody.
type witness struct {
	d       *Datapath
	ring    *ringbuf.Reader
	publish func(events.Event)
	stopped chan struct{}

	// known is who has caused events, by index: as bounded as the map.
	known     map[uint32]*source
	restless  bool // some of them are active
	tallied   time.Time
	malformed uint64

	drain   sync.Mutex // one Drain at a time: each flush is then its own
	mu      sync.Mutex
	drained chan struct{} // closed when the ring has been read to its end
}

// source is an attachment that has caused events.
type source struct {
	id       string
	identity uint64
	lost     uint64 // of the bucket's, told already
	active   bool   // may have lost more since
}

func newWitness(d *Datapath, publish func(events.Event)) (*witness, error) {
	ring, err := ringbuf.NewReader(d.bpf.NfEvents)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return &witness{
		d: d, ring: ring, publish: publish,
		stopped: make(chan struct{}), known: make(map[uint32]*source), tallied: time.Now(),
	}, nil
}

// DrainEvents returns when all that was dropped before the call has been handed
// to Config.Events, or counted as lost. Events of an attachment that nobody has
// heard of before its Detach may be missed without it.
func (d *Datapath) DrainEvents() error {
	w := d.witness
	if w == nil {
		return nil
	}
	w.drain.Lock()
	defer w.drain.Unlock()
	drained := make(chan struct{})
	w.mu.Lock()
	w.drained = drained
	w.mu.Unlock()
	if err := w.ring.Flush(); err != nil {
		return fmt.Errorf("drain events: %w", err)
	}
	select {
	case <-drained:
		return nil
	case <-w.stopped:
		return fmt.Errorf("drain events: %w", os.ErrClosed)
	}
}

// close ends run; the caller waits for it.
func (w *witness) close() error {
	if w == nil {
		return nil
	}
	return w.ring.Close()
}

// run hands events on until close.
func (w *witness) run() {
	defer close(w.stopped)
	var record ringbuf.Record
	for {
		w.ring.SetDeadline(w.deadline())
		switch err := w.ring.ReadInto(&record); {
		case err == nil:
			w.hear(record.RawSample)
			if time.Since(w.tallied) >= tallyInterval {
				w.tally()
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.tally()
		case errors.Is(err, ringbuf.ErrFlushed):
			w.tally()
			w.mu.Lock()
			close(w.drained)
			w.mu.Unlock()
		case errors.Is(err, os.ErrClosed):
			return
		default:
			w.d.log.Error("events are not read any more", "err", err)
			return
		}
	}
}

// deadline is when to look for lost events; never while nobody can have lost any.
func (w *witness) deadline() time.Time {
	if !w.restless {
		return time.Time{}
	}
	return w.tallied.Add(tallyInterval)
}

// hear hands one record on. A record that makes no sense, or whose attachment
// is gone, is passed over.
func (w *witness) hear(raw []byte) {
	var e bpfEvent
	if len(raw) != int(unsafe.Sizeof(e)) {
		w.misheard("length", len(raw))
		return
	}
	if _, err := binary.Decode(raw, binary.NativeEndian, &e); err != nil {
		w.misheard("err", err)
		return
	}
	reason, ok := reasons[bpfReason(e.Reason)]
	if !ok {
		w.misheard("reason", e.Reason)
		return
	}
	s := w.source(e.Identity)
	if s == nil {
		return
	}
	s.active, w.restless = true, true
	at := wallTime(e.Time)
	w.lost(s, e.Lost, at)
	flow := &events.DeniedFlow{
		Source:      netip.AddrPortFrom(addressOf(e.Src.Word), e.SrcPort),
		Destination: netip.AddrPortFrom(addressOf(e.Dst.Word), e.DstPort),
		Protocol:    e.Protocol,
		Length:      int(e.Length),
		Reason:      reason,
		WouldDeny:   e.WouldDeny != 0,
		Rule:        w.d.ruleText(&e),
	}
	if flow.Destination.Addr().IsValid() {
		flow.Names = w.d.namesOf(e.Identity, flow.Destination.Addr())
	}
	w.publish(events.Event{Time: at, Attachment: s.id, Flow: flow})
}

func (w *witness) misheard(what string, value any) {
	if w.malformed++; w.malformed == 1 {
		w.d.log.Error("event of the kernel not understood; further ones are not logged", what, value)
	}
}

// source finds who an identity is, and nobody for one that has ended: identities
// are never used again.
func (w *witness) source(identity uint64) *source {
	index := uint32(identity)
	if s := w.known[index]; s != nil && s.identity == identity {
		return s
	}
	var record bpfAttachment
	if err := w.d.bpf.NfAttachments.Lookup(index, &record); err != nil || record.Incarnation == 0 ||
		record.Incarnation != uint32(identity>>32) {
		return nil
	}
	s := &source{id: uuid.UUID(record.Id).String(), identity: identity}
	w.known[index] = s
	return s
}

// tally tells of lost events that no event has told of.
func (w *witness) tally() {
	w.tallied, w.restless = time.Now(), false
	for index, s := range w.known {
		if !s.active {
			continue
		}
		var (
			record bpfAttachment
			bucket bpfEventBucket
		)
		// Whoever has the index now has the bucket too, so first the bucket, then whose it was.
		err := errors.Join(w.d.bpf.NfEventBuckets.Lookup(index, &bucket), w.d.bpf.NfAttachments.Lookup(index, &record))
		if err != nil || record.Incarnation != uint32(s.identity>>32) {
			delete(w.known, index)
			continue
		}
		s.active = w.lost(s, bucket.Lost, w.tallied)
		w.restless = w.restless || s.active
	}
}

// lost tells of what was lost beyond what was told already.
func (w *witness) lost(s *source, lost uint64, at time.Time) bool {
	if lost <= s.lost {
		return false
	}
	w.publish(events.Event{Time: at, Attachment: s.id, Lost: lost - s.lost})
	s.lost = lost
	return true
}

// addressOf is the inverse of networkWords; the zero Addr for an address that is not known.
func addressOf(words [4]uint32) netip.Addr {
	if words == [4]uint32{} {
		return netip.Addr{}
	}
	var b [16]byte
	for i, w := range words {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// wallTime turns an instant of the boot clock, which nobody sets, into what the
// clock on the wall shows for it now.
func wallTime(boot uint64) time.Time {
	now, err := BootClock()
	if err != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(boot) - now)
}
