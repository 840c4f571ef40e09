// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"errors"
	"sync"
	"time"
)

// DefaultRate is how many events a second an attachment may cause, of each kind.
const DefaultRate = 100

// queueLength is how many events wait for a slow subscriber; more are lost to it.
const queueLength = 1024

// ErrClosed says that the subscription or its hub is closed.
var ErrClosed = errors.New("no more events")

// Hub hands events to whoever subscribed. It keeps none: what nobody waits for
// is gone, and not counted as lost.
type Hub struct {
	now func() time.Time

	// mu guards what follows. Lock order: Hub.mu before Subscription.mu.
	mu            sync.Mutex
	subscriptions map[*Subscription]struct{}
	decisions     limiter
	closed        bool
	counts        Counts
}

// Counts are the events that were published, and those that nobody was told of:
// they were more than the rate of their attachment, or than the kernel had room for.
type Counts struct{ Flows, Decisions, Incidents, Lost uint64 }

// Counts counts since the hub was made.
func (h *Hub) Counts() Counts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts
}

func (c *Counts) add(e Event) {
	switch {
	case e.Flow != nil:
		c.Flows++
	case e.Decision != nil:
		c.Decisions++
	case e.Incident != nil:
		c.Incidents++
	}
	c.Lost += e.Lost
}

// NewHub returns a hub that passes on, for each attachment, rate DNS decisions a
// second; 0: DefaultRate. Dropped packets are limited where they are seen, in
// the kernel, and incidents are rare.
func NewHub(rate int) *Hub {
	if rate <= 0 {
		rate = DefaultRate
	}
	return &Hub{
		now:           time.Now,
		subscriptions: make(map[*Subscription]struct{}),
		decisions:     limiter{rate: float64(rate)},
	}
}

// Publish hands e to the subscriptions that want it. It never waits for any of
// them. What e points to is shared from here on and must not change.
func (h *Hub) Publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.Decision != nil && !h.decisions.allow(e.Attachment, h.now()) {
		e = Event{Time: e.Time, Attachment: e.Attachment, Lost: 1}
	}
	h.counts.add(e)
	for s := range h.subscriptions {
		s.put(e)
	}
}

// Subscribe begins a subscription to the attachments named; to all, those to
// come included, where none is. The caller must close it.
func (h *Hub) Subscribe(ids ...string) *Subscription {
	s := &Subscription{hub: h, wake: make(chan struct{}, 1)}
	if len(ids) > 0 {
		s.ids = make(map[string]struct{}, len(ids))
		for _, id := range ids {
			s.ids[id] = struct{}{}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		s.closed = true
	} else {
		h.subscriptions[s] = struct{}{}
	}
	return s
}

// SubscribeFlows is Subscribe for who wants denied packets and nothing else: it is
// not woken by what there is more of.
func (h *Hub) SubscribeFlows(ids ...string) *Subscription {
	s := h.Subscribe(ids...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flows = true
	s.queue, s.lost = nil, 0
	return s
}

// Close ends every subscription: each still gets what waits for it.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subscriptions {
		s.end()
	}
	clear(h.subscriptions)
}

// Subscription is one reader's queue of events.
type Subscription struct {
	hub  *Hub
	ids  map[string]struct{} // nil: all
	wake chan struct{}       // holds one token while there is something to take

	mu     sync.Mutex
	queue  []Event
	lost   uint64
	closed bool
	flows  bool // alone
}

// Next waits for events and returns all that there are, in order, and how many
// were lost since the call before: to the attachments' rates, to a full ring in
// the kernel, or to this reader's own slowness. There may be lost ones alone.
// It returns ErrClosed when there are no more to come, or the error of ctx. One
// caller at a time.
func (s *Subscription) Next(ctx context.Context) (batch []Event, lost uint64, err error) {
	for {
		batch, lost, closed := s.take()
		switch {
		case len(batch) > 0 || lost > 0:
			return batch, lost, nil
		case closed:
			return nil, 0, ErrClosed
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// Close ends the subscription; a Next that waits returns.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subscriptions, s)
	s.end()
}

func (s *Subscription) put(e Event) {
	if s.ids != nil {
		if _, wanted := s.ids[e.Attachment]; !wanted {
			return
		}
	}
	s.mu.Lock()
	switch {
	case s.flows && e.Flow == nil:
		s.mu.Unlock()
		return
	case e.Lost > 0:
		s.lost += e.Lost
	case len(s.queue) < queueLength:
		s.queue = append(s.queue, e)
	default:
		s.lost++
	}
	s.mu.Unlock()
	s.signal()
}

func (s *Subscription) take() (batch []Event, lost uint64, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch, lost = s.queue, s.lost
	s.queue, s.lost = nil, 0
	return batch, lost, s.closed
}

func (s *Subscription) end() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.signal()
}

func (s *Subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default: // it has not come for the one before yet, and will find this too
	}
}
