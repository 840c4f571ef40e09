// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

const (
	// maxEventBytes of one event: stock servers refuse 4 MiB.
	maxEventBytes = 3 << 20
	// sendTimeout ends a stream whose peer has stopped reading: pings alone would keep it.
	sendTimeout = time.Minute
	// drainTimeout is how long a stream that was told to go away may take to finish what it holds.
	drainTimeout = 5 * time.Second
	// revokedEvery is how long a stream may stand after the server's certificate was revoked.
	revokedEvery = 5 * time.Second
	// maxAway is the longest a control plane can send us away: attaches fail meanwhile.
	maxAway = 10 * time.Minute
)

// goAwayError ends a stream on the control plane's wish.
type goAwayError struct{ wait time.Duration }

func (e *goAwayError) Error() string { return "control plane asked to reconnect later" }

var (
	errEnded   = errors.New("control plane ended the stream")
	errDrained = fmt.Errorf("go away: not finished within %v", drainTimeout)
)

// session is one stream, from SyncRequest to its end.
type session struct {
	c      *Client
	conn   grpc.ClientConnInterface // of the stream
	stream grpc.BidiStreamingClient[netfencev1.DaemonEvent, netfencev1.ControlCommand]
	cancel context.CancelCauseFunc // ends the stream

	sending chan struct{} // holds one token: Send is not for concurrent use
	closed  bool          // nothing more may be sent; whoever has the token may look

	mu   sync.Mutex
	due  map[string]struct{} // attachments to announce
	wake chan struct{}       // of the announcer; holds one

	synced   chan struct{} // closed on SyncAck
	welcome  *netfencev1.Welcome
	overflow []string // attachments to tell of once synced: SyncRequest had no room for them, or they have changed since

	shards []chan received
	budget *semaphore.Weighted // bytes of commands received and not yet applied
	waits  *semaphore.Weighted // numbered commands applied and not yet in force
	work   sync.WaitGroup      // shards and waits
	// handling are the commands dispatched and not yet applied. Only the receiver adds and waits.
	handling sync.WaitGroup
}

// stream dials and holds one stream until it ends, and says why it did.
func (c *Client) stream(ctx context.Context, address string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := c.opts.Dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := netfencev1.NewControlPlaneClient(conn).Connect(ctx, grpc.MaxCallRecvMsgSize(c.opts.MaxCommandBytes))
	if err != nil {
		return err
	}
	s := &session{
		c:       c,
		conn:    conn,
		stream:  stream,
		cancel:  cancel,
		sending: make(chan struct{}, 1),
		due:     make(map[string]struct{}),
		wake:    make(chan struct{}, 1),
		synced:  make(chan struct{}),
		budget:  semaphore.NewWeighted(int64(2 * c.opts.MaxCommandBytes)),
		waits:   semaphore.NewWeighted(maxWaits),
	}
	return s.run(ctx)
}

// run owns every goroutine of the session. Commands already received are applied even when the
// stream is gone: the control plane may believe that they were.
func (s *session) run(ctx context.Context) error {
	// Visible before the attachments are listed: an attach is in the list or announces itself.
	s.c.setSession(s)
	defer s.c.setSession(nil)
	var tellers sync.WaitGroup
	defer tellers.Wait()
	defer s.work.Wait()
	defer s.cancel(nil)

	s.startShards(ctx)
	defer s.stopShards()
	if err := s.sync(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	tellers.Go(func() { s.announcer(ctx) })
	tellers.Go(func() { s.heartbeats(ctx) })
	if conn, ok := s.conn.(standing); ok {
		tellers.Go(func() { s.watchRevoked(ctx, conn) })
	}
	return s.receive(ctx)
}

// watchRevoked ends the stream when the server's certificate is revoked by now.
func (s *session) watchRevoked(ctx context.Context, conn standing) {
	ticker := time.NewTicker(revokedEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := conn.Revoked(); err != nil {
				s.cancel(err)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// receive takes one command at a time; it holds the next one back while those before it take up the
// budget. It returns the reason for the end of the stream, never nil.
func (s *session) receive(ctx context.Context) error {
	for {
		cmd, err := s.stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			if errors.Is(err, io.EOF) {
				return errEnded
			}
			return err
		}
		s.c.setLink(Connected, nil)
		switch command := cmd.GetCommand().(type) {
		case *netfencev1.ControlCommand_SyncAck:
			s.syncAck(command.SyncAck)
		case *netfencev1.ControlCommand_GoAway:
			return s.goAway(command.GoAway)
		case *netfencev1.ControlCommand_PutPolicy, *netfencev1.ControlCommand_DeletePolicy:
			// It is about many attachments: what came before it is applied first, what comes after it later.
			s.handling.Wait()
			s.handleNamed(ctx, cmd)
		default:
			if err := s.dispatch(ctx, cmd); err != nil {
				return context.Cause(ctx)
			}
		}
	}
}

// syncAck takes the peer's announcement of itself. Only the first counts.
func (s *session) syncAck(ack *netfencev1.SyncAck) {
	select {
	case <-s.synced:
	default:
		s.welcome = ack.GetWelcome()
		close(s.synced)
	}
}

// goAway finishes what was commanded, ends the stream from our side, and waits for the other:
// a cancelled stream could lose results that are still on their way out.
func (s *session) goAway(away *netfencev1.GoAway) error {
	limit := time.AfterFunc(drainTimeout, func() { s.cancel(errDrained) })
	defer limit.Stop()
	s.stopShards()
	s.work.Wait()
	s.closeSend()
	for {
		if _, err := s.stream.Recv(); err != nil {
			break
		}
	}
	low := min(max(away.GetMin().AsDuration(), 0), maxAway)
	return &goAwayError{wait: between(low, min(away.GetMax().AsDuration(), maxAway))}
}

// send blocks while the peer does not read. An error means that the stream is over; Recv has the reason.
func (s *session) send(event *netfencev1.DaemonEvent) error {
	s.sending <- struct{}{}
	defer func() { <-s.sending }()
	if s.closed {
		return errEnded
	}
	limit := time.AfterFunc(sendTimeout, func() {
		s.cancel(fmt.Errorf("control plane read nothing for %v", sendTimeout))
	})
	defer limit.Stop()
	return s.stream.Send(event)
}

func (s *session) closeSend() {
	s.sending <- struct{}{}
	defer func() { <-s.sending }()
	s.closed = true
	// CloseSend never fails (grpc.ClientStream): a broken stream shows in Recv.
	_ = s.stream.CloseSend()
}

func (c *Client) setSession(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
	if s != nil {
		c.streams++
	}
}
