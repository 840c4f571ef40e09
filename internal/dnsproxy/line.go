// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

const (
	// turn is how many jobs of an attachment are done before it is another's turn, and
	// turnTime how long they may take: one with an answer of 64 KB takes as long as hundreds of others.
	turn     = 16
	turnTime = time.Millisecond
	// lanesEach is how many wait for a worker before another begins to work as well: to
	// have one wake up takes as long as some queries.
	lanesEach = 64
)

// line is what there is to be done. Whose jobs they are, attachments take turns: one that
// has many to be done has others wait for a turn of it, not for all of them. What arrives, from
// clients and from servers, is only sorted into it by those who read sockets, so
// that no queue is left in which all stand behind each other.
//
// Most of it is done by the one who reads sockets, between two looks at them: nobody has
// to be woken for it. Others help where much is to be done for many.
//
// An attachment has one worker at a time: more would wait for its lock in the kernel's memory, and have all processors
// busy for one. How many of its jobs there are is the gate's business.
type line struct {
	workers int // at once, at most
	send    func(*hand)

	mu      sync.Mutex
	idle    sync.Cond // nobody works
	lanes   map[uint32]*lane
	first   *lane // whose turn it is
	last    *lane
	waiting int  // lanes from first to last
	working int  // workers that take turns, the reader included
	apart   int  // workers that do not
	reads   bool // the reader works
	spare   *lane
	reader  hand
}

// lane is what there is to be done for one attachment. It waits in the line or has a worker.
type lane struct {
	place uint32
	jobs  []*job
	next  *lane
}

func newLine(send func(*hand)) *line {
	l := &line{workers: runtime.GOMAXPROCS(0), send: send, lanes: make(map[uint32]*lane)}
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
	l.enlist()
}

// enlist has as many work as are needed. The caller holds l.mu.
func (l *line) enlist() {
	for l.working < l.workers && l.waiting > l.working*lanesEach {
		l.another()
	}
}

// another has one more work. The caller holds l.mu.
func (l *line) another() {
	l.working++
	go l.work() // see wait
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
	var h hand
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.first != nil {
		l.turns(&h)
	}
	l.leave()
}

// turns takes some, and sends what comes of them. The caller holds l.mu.
func (l *line) turns(h *hand) {
	var room [turn]*job
	for taken, late := 0, false; l.first != nil && taken < 2*turn && !h.full() && !late; {
		n, jobs := l.pop(room[:0])
		taken += len(jobs)
		l.mu.Unlock()
		end := time.Now().Add(turnTime)
		done, busy := h.do(jobs, end)
		late = time.Now().After(end)
		l.mu.Lock()
		if busy {
			l.apart++
			go l.workApart(n, slices.Clone(jobs[done:]))
		} else {
			n.jobs = slices.Insert(n.jobs, 0, jobs[done:]...)
			l.took(n)
		}
		clear(room[:])
		if late && l.first != nil && l.working < l.workers {
			l.another() // to have it wake up costs less than what takes so long
		}
	}
	l.mu.Unlock()
	l.send(h)
	l.mu.Lock()
}

// do returns how many jobs were done until the end of its time, of which it takes one at least, or busy: before one
// that has to wait.
func (h *hand) do(jobs []*job, end time.Time) (done int, busy bool) {
	for i, j := range jobs {
		if i > 0 && !end.IsZero() && time.Now().After(end) {
			return i, false
		}
		if !j.step(h) {
			return i, true
		}
	}
	return len(jobs), false
}

// took puts a lane behind the others, if there is more to be done in it. The caller holds l.mu.
func (l *line) took(n *lane) {
	if len(n.jobs) > 0 {
		l.push(n)
		return
	}
	delete(l.lanes, n.place)
	if cap(n.jobs) <= 4*turn {
		n.next, l.spare = l.spare, n
	}
}

// workApart does what others would have to wait for: the jobs of an attachment
// whose policy is being replaced.
func (l *line) workApart(n *lane, jobs []*job) {
	h := hand{waits: true}
	h.do(jobs, time.Time{})
	l.send(&h)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took(n)
	l.apart--
	l.enlist()
	l.leaveIdle()
}

// begin and end go around what the reader does. end takes turns, and reports
// whether there are more to take.
func (l *line) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.reads {
		l.reads = true
		l.working++
	}
}

func (l *line) end() (more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turns(&l.reader)
	if l.first != nil {
		return true
	}
	l.reads = false
	l.leave()
	return false
}

// leave takes a worker off. The caller holds l.mu.
func (l *line) leave() {
	l.working--
	l.leaveIdle()
}

func (l *line) leaveIdle() {
	if l.working == 0 && l.apart == 0 {
		l.spare = nil
		l.idle.Broadcast()
	}
}

// wait returns when nobody works. What is added meanwhile is waited for.
func (l *line) wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.working > 0 || l.apart > 0 {
		l.idle.Wait()
	}
}

// hand is a worker's: what it has to send, which goes in batches, when there is enough or nothing is left to be done.
type hand struct {
	waits   bool // it may wait for an attachment whose policy is being replaced
	answers []Answer
	through []PacketConn // of answers
	asked   int          // queries that may have been given to upstream.out
}

func (h *hand) full() bool { return len(h.answers)+h.asked >= 2*turn }

func (h *hand) add(c PacketConn, a Answer) {
	h.answers, h.through = append(h.answers, a), append(h.through, c)
}

// send empties a hand.
func (s *Server) send(h *hand) {
	if h.asked > 0 {
		h.asked = 0
		s.up.flush()
	}
	for from := 0; from < len(h.answers); {
		to := from + 1
		for to < len(h.answers) && h.through[to] == h.through[from] {
			to++
		}
		// Nothing can be done about an answer that does not leave: the client asks again.
		_ = h.through[from].WriteAnswers(h.answers[from:to])
		from = to
	}
	clear(h.answers)
	clear(h.through)
	h.answers, h.through = h.answers[:0], h.through[:0]
}
