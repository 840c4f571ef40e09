// SPDX-License-Identifier: Apache-2.0

package reconciler

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Backoff is the pause before another try. It doubles from Min to Max, less up
// to half of it at random, so that what failed together is not tried together.
type Backoff struct{ Min, Max time.Duration }

var defaultBackoff = Backoff{Min: 100 * time.Millisecond, Max: 30 * time.Second}

// wait is the pause after so many failures in a row.
func (b Backoff) wait(failures int) time.Duration {
	pause := b.Min
	for i := 1; i < failures && pause < b.Max; i++ {
		pause *= 2
	}
	pause = min(pause, b.Max)
	return pause - time.Duration(rand.Float64()*float64(pause)/2) //nolint:gosec // no secret
}

// queue hands attachments to workers, each to one at a time. It holds ids and no
// facts: what there is to do is read when the turn comes, so any number of
// changes meanwhile is one entry.
type queue struct {
	backoff Backoff

	mu      sync.Mutex
	some    *sync.Cond // ready is not empty, or closed
	ready   []string   // in the order in which they became so
	entries map[string]*entry
	closed  bool
}

type entry struct {
	place    place
	again    bool // changed while a worker had it
	failures int  // in a row
	retry    *time.Timer
}

// place is where an attachment is.
type place uint8

const (
	ready   place = iota
	working       // a worker has it
	paused        // until retry fires, or it changes
)

func newQueue(b Backoff) *queue {
	q := &queue{backoff: b, entries: make(map[string]*entry)}
	q.some = sync.NewCond(&q.mu)
	return q
}

// add has the attachments handled soon. A change is not kept waiting for the
// pause after an earlier failure.
func (q *queue) add(ids ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range ids {
		e := q.entries[id]
		switch {
		case e == nil:
			e = &entry{}
			q.entries[id] = e
			q.push(id, e)
		case e.place == working:
			e.again = true
		case e.place == paused:
			e.retry.Stop()
			q.push(id, e)
		}
	}
}

// push makes an entry ready. mu is held.
func (q *queue) push(id string, e *entry) {
	e.place = ready
	q.ready = append(q.ready, id)
	q.some.Signal()
}

// next waits for an attachment that is ready; false when the queue is closed.
// The caller calls done with it.
func (q *queue) next() (id string, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ready) == 0 && !q.closed {
		q.some.Wait()
	}
	if q.closed {
		return "", false
	}
	id, q.ready = q.ready[0], q.ready[1:]
	q.entries[id].place = working
	return id, true
}

// done takes an attachment back and returns how often in a row it failed. If err
// is not nil it will be handled again after a pause, or sooner if it changes.
func (q *queue) done(id string, err error) (failures int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.entries[id]
	if err == nil {
		e.failures = 0
	} else {
		e.failures++
	}
	switch {
	case e.again:
		e.again = false
		q.push(id, e)
	case err == nil:
		delete(q.entries, id)
	case !q.closed:
		e.place = paused
		e.retry = time.AfterFunc(q.backoff.wait(e.failures), func() { q.resume(id) })
	}
	return e.failures
}

// resume ends the pause of an attachment.
func (q *queue) resume(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	// A change may have been faster.
	if e := q.entries[id]; e != nil && e.place == paused && !q.closed {
		q.push(id, e)
	}
}

// close ends next for everyone and every pause.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, e := range q.entries {
		if e.retry != nil {
			e.retry.Stop()
		}
	}
	q.some.Broadcast()
}
