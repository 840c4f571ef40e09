// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"runtime"
	"slices"
	"sync"
)

const (
	// turn is how many jobs of an attachment are done before it is another's turn.
	turn = 16
	// spareWorkers are beside one for each processor: some may wait for the lock of
	// an attachment whose policy is being replaced.
	spareWorkers = 8
)

// line is what there is to be done. Whose jobs they are, attachments take turns: one that
// has many to be done has others wait for a turn of it, not for all of them. What arrives, from
// clients and from servers, is only sorted into it by those who read sockets, so
// that no queue is left in which all stand behind each other.
//
// An attachment has one worker at a time: more would wait for its lock in the kernel's memory, and have all processors
// busy for one. How many of its jobs there are is the gate's business.
type line struct {
	workers int // at once, at most
	send    func(*outbox)

	mu      sync.Mutex
	idle    sync.Cond // nobody works
	lanes   map[uint32]*lane
	first   *lane // whose turn it is
	last    *lane
	waiting int // lanes from first to last
	working int // workers
	spare   *lane
}

// lane is what there is to be done for one attachment. It waits in the line or has a worker.
type lane struct {
	place uint32
	jobs  []*job
	next  *lane
}

func newLine(send func(*outbox)) *line {
	l := &line{workers: runtime.GOMAXPROCS(0) + spareWorkers, send: send, lanes: make(map[uint32]*lane)}
	l.idle.L = &l.mu
	return l
}

// add has jobs done, and does not wait for it.
func (l *line) add(jobs ...*job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range jobs {
		n := l.lanes[j.place]
		if n == nil {
			n = l.newLane(j.place)
			l.push(n)
		}
		n.jobs = append(n.jobs, j)
	}
	for l.working < l.workers && l.working < l.waiting {
		l.working++
		go l.work() // see wait
	}
}

func (l *line) newLane(place uint32) *lane {
	n := l.spare
	if n == nil {
		n = &lane{}
	} else {
		l.spare = n.next
	}
	n.place, n.next = place, nil
	l.lanes[place] = n
	return n
}

// push puts a lane at the end. The caller holds l.mu.
func (l *line) push(n *lane) {
	if l.last == nil {
		l.first = n
	} else {
		l.last.next = n
	}
	l.last = n
	l.waiting++
}

// pop takes the lane whose turn it is, and what is done in it; nil: nobody waits. The caller holds l.mu.
func (l *line) pop(jobs []*job) (*lane, []*job) {
	n := l.first
	if n == nil {
		return nil, nil
	}
	if l.first = n.next; l.first == nil {
		l.last = nil
	}
	n.next = nil
	l.waiting--
	taken := min(turn, len(n.jobs))
	jobs = append(jobs, n.jobs[:taken]...)
	n.jobs = slices.Delete(n.jobs, 0, taken)
	return n, jobs
}

// work takes turns until there is nobody whose it is.
func (l *line) work() {
	var o outbox
	var room [turn]*job
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		n, jobs := l.pop(room[:0])
		if n == nil {
			break
		}
		l.mu.Unlock()
		for _, j := range jobs {
			j.step(&o)
		}
		clear(room[:])
		l.mu.Lock()
		if len(n.jobs) > 0 {
			l.push(n)
		} else {
			delete(l.lanes, n.place)
			if cap(n.jobs) <= 4*turn {
				n.next, l.spare = l.spare, n
			}
		}
		if l.first == nil || o.full() {
			l.mu.Unlock()
			l.send(&o)
			l.mu.Lock()
		}
	}
	if l.working--; l.working == 0 {
		l.spare = nil
		l.idle.Broadcast()
	}
}

// wait returns when nobody works. What is added meanwhile is waited for.
func (l *line) wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.working > 0 {
		l.idle.Wait()
	}
}

// outbox is what a worker has to send: it goes in batches, when there are enough or nothing is left to be done.
type outbox struct {
	answers []Answer
	through []PacketConn // of answers
	asked   int          // queries that may have been given to upstream.out
}

func (o *outbox) full() bool { return len(o.answers)+o.asked >= 2*turn }

func (o *outbox) add(c PacketConn, a Answer) {
	o.answers, o.through = append(o.answers, a), append(o.through, c)
}

// send empties an outbox.
func (s *Server) send(o *outbox) {
	if o.asked > 0 {
		o.asked = 0
		s.up.flush()
	}
	for from := 0; from < len(o.answers); {
		to := from + 1
		for to < len(o.answers) && o.through[to] == o.through[from] {
			to++
		}
		// Nothing can be done about an answer that does not leave: the client asks again.
		_ = o.through[from].WriteAnswers(o.answers[from:to])
		from = to
	}
	clear(o.answers)
	clear(o.through)
	o.answers, o.through = o.answers[:0], o.through[:0]
}
