// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"time"

	"github.com/miekg/dns"
)

const (
	// idleStreams is how many connections to one server wait for more to ask, and
	// idleStream for how long (RFC 7766 section 6.2.3).
	idleStreams = 4
	idleStream  = 3 * time.Second
	// streamsPerServer are how many connections one server is bothered with, and streamsEach how many of them for one
	// attachment.
	streamsPerServer = 64
	streamsEach      = 32
)

// stream is a TCP connection to a server. It carries one query at a time.
type stream struct {
	net.Conn
	used bool        // it has carried an answer before
	end  *time.Timer // while it waits
}

// connect asks a server again, over TCP. The caller holds q.mu.
func (q *quest) connect(over *try) {
	ctx, cancel := context.WithDeadline(context.Background(), q.deadline)
	t := &try{quest: q, server: over.server, began: time.Now(), cancel: cancel}
	q.tries = append(q.tries, t)
	edns := over.sent[11] == 1
	q.u.running.Go(func() {
		defer cancel()
		a, err := t.exchange(ctx, edns)
		q.answered(t, a, err)
		q.u.flush()
	})
}

// exchange asks over a connection, one that waits or a new one.
func (t *try) exchange(ctx context.Context, edns bool) (a *answer, err error) {
	if t.sent, err = t.quest.r.message(t.room[:0], edns, false); err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(t.sent, uint16(rand.Uint32()))
	if !t.server.streaming.enterWhenFree(ctx, t.quest.r.index) {
		return nil, errBusy
	}
	defer t.server.streaming.leave(t.quest.r.index)
	for {
		c, err := t.server.connection(ctx)
		if err != nil {
			return nil, netError(ctx, err)
		}
		a, err = t.over(ctx, c)
		if err == nil {
			t.server.keep(c)
			return a, nil
		}
		c.Close()
		if !c.used || errors.Is(err, errNoEDNS) || ctx.Err() != nil {
			return nil, netError(ctx, err)
		}
		// The server has ended it while it waited.
	}
}

// over asks on one connection.
func (t *try) over(ctx context.Context, c *stream) (*answer, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := writeMessage(c, t.sent); err != nil {
		return nil, err
	}
	for {
		in, err := readMessage(c, time.Minute, dns.MaxMsgSize) // ctx ends before
		if err != nil {
			return nil, err
		}
		ok, err := match(t.sent, in, false)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if a, err := t.read(in); a != nil || err != nil {
			return a, err
		}
	}
}

// connection returns one that waits, the newest, or a new one.
func (s *server) connection(ctx context.Context) (*stream, error) {
	s.mu.Lock()
	for n := len(s.streams); n > 0; n = len(s.streams) {
		c := s.streams[n-1]
		s.streams = s.streams[:n-1]
		s.u.kept.Add(-1)
		if c.end.Stop() {
			s.mu.Unlock()
			return c, nil
		}
	}
	s.mu.Unlock()
	dialer := net.Dialer{Control: s.u.control}
	c, err := dialer.DialContext(ctx, "tcp", s.addr.String())
	if err != nil {
		return nil, err
	}
	return &stream{Conn: c}, nil
}

// keep has a connection wait for more to ask.
func (s *server) keep(c *stream) {
	c.used = true
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) == idleStreams || s.closed || s.u.kept.Load() >= s.u.most {
		c.Close()
		return
	}
	s.u.kept.Add(1)
	c.end = time.AfterFunc(idleStream, func() {
		c.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		before := len(s.streams)
		s.streams = slices.DeleteFunc(s.streams, func(other *stream) bool { return other == c })
		s.u.kept.Add(int32(len(s.streams) - before))
	})
	s.streams = append(s.streams, c)
}

// netError makes one error of the ways in which waiting ends.
func netError(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return errTimeout
	}
	return systemError(err)
}
