// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// writeTimeout is how long a client may leave its answers unread.
const writeTimeout = 5 * time.Second

// perConn is how many queries of one connection are in flight; the rest waits
// in the socket.
const perConn = 32

// ServeTCP is Serve for connections. Each carries any number of queries (RFC
// 7766), answered in whatever order they are done. Above the limit of queries
// a connection is not read; above that of connections a new one is closed.
func (s *Server) ServeTCP(ctx context.Context, l Listener) error {
	s.begin()
	defer s.end()
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	if s.Settled != nil { // whose a connection is stays what it was when it came
		select {
		case <-s.Settled:
		case <-ctx.Done():
			return nil
		}
	}
	var pause backoff
	for {
		c, from, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) || !pause.wait(ctx, s.Log, err) {
				return fmt.Errorf("accept dns connections: %v", err)
			}
			continue
		}
		pause.reset()
		place := s.placeOf(from.Index)
		if !s.conns.enter(place) {
			s.overLimit(from)
			c.Close()
			continue
		}
		running.Go(func() {
			defer s.conns.leave(place)
			s.serveConn(ctx, c, from, place)
		})
	}
}

// serveConn returns when the connection is closed and its queries are done. A
// connection is one attachment's: it ends when its index is another's.
func (s *Server) serveConn(ctx context.Context, c net.Conn, from Peer, place uint32) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait() // last: nothing writes to a connection of somebody else's
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer cancel()

	owner := s.owner(from.Index)
	var write sync.Mutex
	places := make(chan struct{}, perConn)
	for {
		query, err := readMessage(c, s.IdleTimeout, MaxQuery)
		if err != nil {
			// A client that only closed its side still wants its answers.
			if errors.Is(err, io.EOF) {
				running.Wait()
			}
			return
		}
		if s.owner(from.Index) != owner {
			return
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		if !s.queries.enterWhenFree(ctx, place) {
			return
		}
		running.Go(func() {
			// It has its place until the answer is written and, whether or not the client stays, nobody is asked for it any more.
			var over atomic.Int32
			leave := func() {
				if over.Add(1) == 2 {
					s.queries.leave(place)
				}
			}
			defer func() { leave(); <-places }()
			reply := s.handle(ctx, query, from, true, leave)
			if reply == nil {
				return
			}
			write.Lock()
			defer write.Unlock()
			if err := writeMessage(c, reply); err != nil {
				c.Close() // a stream with part of a message in it is of no use
			}
		})
	}
}

// readMessage reads one length-prefixed message of at most limit bytes. It has
// the time from beginning to end.
func readMessage(c net.Conn, wait time.Duration, limit int) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > limit {
		return nil, fmt.Errorf("message of %d bytes, at most %d", n, limit)
	}
	msg := make([]byte, n)
	if _, err := io.ReadFull(c, msg); err != nil {
		return nil, fmt.Errorf("message cut short: %v", err)
	}
	return msg, nil
}

// writeMessage writes msg and its length at once: in two segments some clients
// take them for two answers (RFC 7766 section 8).
func writeMessage(c net.Conn, msg []byte) error {
	if len(msg) > 0xffff {
		return fmt.Errorf("message of %d bytes does not fit TCP", len(msg))
	}
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...))
	return err
}
