// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// quest is one request on its way to an answer. It asks one server after the
// other, each sooner or later depending on how fast it was before, and goes on
// waiting for those that it has asked: a datagram lost costs little time, and
// an answer that is late is an answer. It needs no goroutine.
type quest struct {
	u        *upstream
	r        *request
	deadline time.Time
	done     func(*answer, *failure)

	// mu guards what follows. Lock order: quest.mu before server.mu before socket.mu.
	mu      sync.Mutex
	over    bool
	servers []*server   // that may have an answer, those to be asked next in front
	fresh   int         // of these, how many have not been asked yet; they are in front
	all     int         // servers there were
	asked   int         // how often any was
	tries   []*try      // that are waited for
	timer   *time.Timer // nil: nothing was asked yet
	last    *failure
}

// try is one query to one server.
type try struct {
	quest  *quest
	server *server
	began  time.Time
	socket *socket            // nil: it is over TCP
	cancel context.CancelFunc // of one over TCP
	sent   []byte
	room   [headerBytes + 64]byte // for most
}

// maxTries bounds what one request sends, whatever its deadline.
const maxTries = 16

func (u *upstream) ask(addrs []netip.AddrPort, r *request, deadline time.Time, done func(*answer, *failure)) {
	q := &quest{u: u, r: r, deadline: deadline, done: done}
	u.mu.Lock()
	if u.ending {
		u.mu.Unlock()
		done(nil, stops())
		return
	}
	u.quests[q] = struct{}{}
	u.mu.Unlock()
	servers := u.at(addrs)
	q.mu.Lock()
	q.servers, q.fresh, q.all = servers, len(servers), len(servers)
	if !q.over {
		q.next(time.Now())
	}
	q.settle()
}

// next asks the server whose turn it is, or the next one if that cannot be. The
// caller holds q.mu.
func (q *quest) next(now time.Time) {
	for len(q.servers) > 0 && q.asked < maxTries {
		s := q.servers[0]
		q.servers = append(q.servers[1:], s) // it is asked again when the others were
		q.fresh = max(q.fresh-1, 0)
		err := q.ask(s, s.speaksEDNS(now), now)
		if err == nil {
			return
		}
		q.spent(s, unreachable(s, err))
	}
}

// ask sends a query over UDP. The caller holds q.mu.
func (q *quest) ask(s *server, edns bool, now time.Time) (err error) {
	t := &try{quest: q, server: s, began: now}
	if t.sent, err = q.r.message(t.room[:0], edns, true); err != nil {
		return err
	}
	if err := s.send(t); err != nil {
		s.bad(now)
		return err
	}
	q.tries = append(q.tries, t)
	q.wake(min(q.deadline.Sub(now), s.patience()<<min(q.asked/q.all, 3)))
	q.asked++
	return nil
}

// wake has late called after so long, and not when it was to be before. The caller holds q.mu.
func (q *quest) wake(after time.Duration) {
	if q.timer == nil {
		q.timer = time.AfterFunc(after, q.late)
		return
	}
	q.timer.Reset(after)
}

// spent takes a server off the list: it has said all that it will. The caller holds q.mu.
func (q *quest) spent(s *server, f *failure) {
	q.servers = slices.DeleteFunc(q.servers, func(other *server) bool { return other == s })
	q.fresh = min(q.fresh, len(q.servers))
	if q.last == nil || q.last.timeout || len(f.upstream) > 0 {
		q.last = f
	}
}

// settle ends the quest if nobody is left who could answer, and releases q.mu.
func (q *quest) settle() {
	hopeless := len(q.tries) == 0 && !q.over
	f := q.last
	q.mu.Unlock()
	if hopeless {
		if f == nil {
			f = &failure{code: dns.ExtendedErrorCodeNoReachableAuthority, text: "no upstream server"}
		}
		q.finish(nil, f)
	}
}

// late asks the next server when one has not answered in time, and ends the
// quest when it has had all its time.
func (q *quest) late() {
	defer q.u.flush()
	now := time.Now()
	q.mu.Lock()
	if q.over {
		q.mu.Unlock()
		return
	}
	if len(q.tries) > 0 {
		t := q.tries[len(q.tries)-1]
		t.server.slow(now, now.Sub(t.began) >= q.u.try)
		if q.last == nil {
			q.last = unreachable(t.server, errTimeout)
		}
	}
	if !now.Before(q.deadline) {
		f := q.last
		q.mu.Unlock()
		q.finish(nil, f)
		return
	}
	before := len(q.tries)
	q.next(now)
	if len(q.tries) == before { // nobody is asked any more; what is under way may still come
		q.wake(q.deadline.Sub(now))
	}
	q.settle()
}

// answered takes what a server said, or how it wants to be asked.
func (q *quest) answered(t *try, a *answer, err error) {
	now := time.Now()
	q.mu.Lock()
	if q.over {
		q.mu.Unlock()
		return
	}
	q.tries = slices.DeleteFunc(q.tries, func(other *try) bool { return other == t })
	switch {
	case err == nil:
		f := lame(t.server, a.wire)
		if f == nil {
			q.mu.Unlock()
			t.server.good(now, now.Sub(t.began), t.sent[11] == 1)
			q.finish(a, nil)
			return
		}
		q.spent(t.server, f)
	case errors.Is(err, errUseTCP):
		q.connect(t)
		q.mu.Unlock()
		return
	case errors.Is(err, errNoEDNS):
		if err = q.ask(t.server, false, now); err == nil {
			q.mu.Unlock()
			return
		}
		q.spent(t.server, unreachable(t.server, err))
	case errors.Is(err, errBusy): // not the server
		q.spent(t.server, unreachable(t.server, err))
	default:
		t.server.bad(now)
		q.spent(t.server, unreachable(t.server, err))
	}
	q.proceed(now)
}

// failed takes that there will be no answer to a try.
func (q *quest) failed(t *try, err error) { q.answered(t, nil, err) }

// proceed asks somebody else at once, who has not been asked yet. Those who have
// are waited for. It releases q.mu.
func (q *quest) proceed(now time.Time) {
	if q.fresh > 0 || len(q.tries) == 0 {
		q.next(now)
	}
	q.settle()
}

// finish ends the quest, once.
func (q *quest) finish(a *answer, f *failure) {
	q.mu.Lock()
	if q.over {
		q.mu.Unlock()
		return
	}
	q.over = true
	if q.timer != nil {
		q.timer.Stop()
	}
	tries := q.tries
	q.tries = nil
	q.mu.Unlock()
	for _, t := range tries {
		if t.socket != nil {
			t.socket.forget(t)
		} else {
			t.cancel()
		}
	}
	q.u.mu.Lock()
	delete(q.u.quests, q)
	q.u.mu.Unlock()
	q.done(a, f)
}

// read makes an answer of a message that matches, if the rest of it is one, too.
// nil and no error: it is not.
func (t *try) read(in []byte) (*answer, error) {
	a := newAnswer(slices.Clone(in))
	if a != nil && a.refusesVersion && t.sent[11] == 1 {
		return nil, errNoEDNS
	}
	return a, nil
}
