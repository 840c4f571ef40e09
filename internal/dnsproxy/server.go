// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datagram"
)

// MaxQuery is room for any query that is not an attempt at something: RFC
// 1035's 512 bytes, EDNS options, a TSIG.
const MaxQuery = 4096

// Server answers queries. It may serve any number of sockets.
type Server struct {
	Options
	ask    asker // upstream.ask; tests have others
	up     *upstream
	cache  *cache
	host   hostAddrs
	ledger ledger

	queries gate // in flight
	conns   gate // TCP
	line    *line
	sockets *datagram.Poller
	aside   sync.WaitGroup // queries that wait outside of the line
	remotes remotes

	// mu guards serving, the number of sockets served. With the last one those to
	// upstreams end.
	mu      sync.Mutex
	serving int
}

// New returns a server. It starts nothing.
func New(o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Server{Options: o}
	s.line = newLine(s.send)
	s.sockets = datagram.NewPoller(s.line.begin, s.line.end)
	s.up = newUpstream(&s.Options, s.sockets)
	s.ask = s.up.ask
	s.cache = newCache(o.CacheBytes, o.ServeStale)
	s.host.read = o.HostAddrs
	s.host.look() // or others do, when there is something to compare
	s.queries = gate{each: o.MaxQueries, all: o.MaxTotal}
	s.conns = gate{each: o.MaxConns, all: o.MaxTotal}
	s.remotes.places = gate{each: remoteEach, all: remoteAll}
	return s, nil
}

// Counts returns how many queries of an attachment were allowed, and how many
// were not, be it for a rule or because something that deciding needs failed.
func (s *Server) Counts(id string) Counts { return s.ledger.counts(id) }

// AllCounts returns those of all attachments that have asked, and the sum over
// those that are gone: with it, what all together have counted never becomes less.
func (s *Server) AllCounts() (counts map[string]Counts, ended Counts) { return s.ledger.all() }

// CacheStats returns what the cache was good for since the start.
func (s *Server) CacheStats() CacheStats { return s.cache.counts() }

// Forget drops what is kept about an attachment that is gone.
func (s *Server) Forget(id string) { s.ledger.forget(id) }

// begin and end go around the serving of a socket.
func (s *Server) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving++; s.serving == 1 {
		s.up.open()
	}
}

func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving--; s.serving > 0 {
		return
	}
	// Whom it has served is told by its context that it ends: nothing new is begun by
	// what comes back into the line.
	s.line.wait()
	s.aside.Wait()
	s.line.wait()
	s.up.close()
	s.sockets.Wait()
	s.line.wait()
}

// settled reports whether it is known whose an index is, or that it is nobody's.
func (s *Server) settled() bool {
	select {
	case <-s.Settled:
		return true
	default:
		return s.Settled == nil
	}
}

// nobody is whose queries and connections those to an index without an attachment, or without a policy yet, are: a
// process of the host, which may ask at any, has no more of them than an attachment.
const nobody = ^uint32(0)

// placeOf is where what comes from an index counts, and waits for its turn.
func (s *Server) placeOf(index uint32) uint32 {
	if s.settled() && s.owner(index) == "" {
		return nobody
	}
	return index
}

// owner is whose the index is; empty: nobody's.
func (s *Server) owner(index uint32) string {
	if chain := s.Kernel.Chain(index); len(chain) > 0 {
		return chain[0].ID
	}
	return ""
}

// Serve answers the queries that arrive on c until ctx ends; then it closes c and
// returns nil, and queries in flight have no answer. Queries above the limits
// are dropped without an answer: whoever sent them in good faith sends again,
// and whoever floods gains nothing.
func (s *Server) Serve(ctx context.Context, c PacketConn) error {
	s.begin()
	defer s.end()
	ctx, cancel := context.WithCancel(ctx)
	defer c.Close()
	defer cancel()
	var arrived []*job
	take := func(b []byte, from Peer) {
		if j := s.admit(ctx, c, b, from); j != nil {
			arrived = append(arrived, j)
		}
	}
	var pause backoff
	failed := make(chan error, 1)
	ready := func() bool {
		more, err := c.ReadQueries(take)
		for read := 1; more && err == nil && read < readsMost; read++ {
			more, err = c.ReadQueries(take)
		}
		if len(arrived) > 0 {
			s.line.add(arrived...)
			clear(arrived)
			arrived = arrived[:0]
		}
		if err != nil {
			failed <- err // once: nobody waits for the socket any more
			return false
		}
		pause.reset()
		return true
	}
	for {
		err := c.Watch(s.sockets, ready)
		if err == nil {
			select {
			case err = <-failed:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) || !pause.wait(ctx, s.Log, err) {
			return fmt.Errorf("read dns queries: %v", err)
		}
	}
}

// readsMost bounds how often a socket is read before something is done of what has arrived. All that is there is read,
// if it can be: what is above somebody's share is thrown away here, sooner than what is others' for want of room in the
// socket's queue, where nobody has a share.
const readsMost = 32

// admit makes a job of a datagram, if there is room for it.
func (s *Server) admit(ctx context.Context, c PacketConn, b []byte, from Peer) *job {
	place := s.placeOf(from.Index)
	if !s.queries.enter(place) {
		s.overLimit(from)
		return nil
	}
	j := &job{s: s, ctx: ctx, place: place, from: from, next: (*job).begin}
	j.in = append(j.room[:0], b...)
	j.done = func(reply []byte, h *hand) {
		s.queries.leave(place)
		if reply != nil {
			h.add(c, Answer{reply, from})
		}
	}
	return j
}

// gate counts what is under way, for each attachment and in all. No attachment
// is given more places than are left free: however many flood at once, others
// find room as soon as the first of these are done.
type gate struct {
	each, all int

	mu    sync.Mutex
	total int
	by    map[uint32]int // no zeros
	queue []*waiting     // for a place, in turn
	waits map[uint32]int // how many of queue are whose; no zeros
}

type waiting struct {
	index   uint32
	entered chan struct{} // closed when it has its place
}

func (g *gate) enter(index uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.enterLocked(index)
}

func (g *gate) enterLocked(index uint32) bool {
	if g.by[index] >= min(g.each, g.all-g.total) {
		return false
	}
	if g.by == nil {
		g.by = make(map[uint32]int)
	}
	g.total++
	g.by[index]++
	return true
}

// enterWhenFree waits for a place; false: ctx ended first.
func (g *gate) enterWhenFree(ctx context.Context, index uint32) bool {
	g.mu.Lock()
	if g.enterLocked(index) {
		g.mu.Unlock()
		return true
	}
	w := &waiting{index, make(chan struct{})}
	g.queue = append(g.queue, w)
	if g.waits == nil {
		g.waits = make(map[uint32]int)
	}
	g.waits[index]++
	g.mu.Unlock()
	select {
	case <-w.entered:
		return true
	case <-ctx.Done():
	}
	g.mu.Lock()
	at := slices.Index(g.queue, w)
	if at >= 0 {
		g.queue = slices.Delete(g.queue, at, at+1)
		g.waitsLess(index)
	}
	g.mu.Unlock()
	if at < 0 { // meanwhile
		g.leave(index)
	}
	return false
}

func (g *gate) waitsLess(index uint32) {
	if g.waits[index]--; g.waits[index] == 0 {
		delete(g.waits, index)
	}
}

// leave gives a place back. Who may have one by now gets it in turn, and whoever has enough is passed over.
func (g *gate) leave(index uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.by[index]--; g.by[index] == 0 {
		delete(g.by, index)
	}
	if g.all-g.total > g.each && g.waits[index] == 0 {
		return // others wait for places of their own
	}
	g.queue = slices.DeleteFunc(g.queue, func(w *waiting) bool {
		if !g.enterLocked(w.index) {
			return false
		}
		g.waitsLess(w.index)
		close(w.entered)
		return true
	})
}

// backoff spaces out the retries of a socket that fails, and gives up on one
// that does nothing else, unless it is for want of what may be free again.
type backoff struct{ failures int }

func (b *backoff) reset() { b.failures = 0 }

// scarce tells errors of which workloads that ask much are the cause.
func scarce(err error) bool {
	for _, cause := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

func (b *backoff) wait(ctx context.Context, log *slog.Logger, err error) bool {
	if b.failures++; b.failures > 20 && !scarce(err) {
		return false
	}
	if b.failures == 1 {
		log.Warn("dns socket fails, trying again", "err", err)
	}
	t := time.NewTimer(min(time.Second, time.Millisecond<<min(b.failures, 20)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return true
}
