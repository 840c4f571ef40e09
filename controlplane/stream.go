// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
)

const (
	// greeting is how long a stream may take to say whose it is.
	greeting = time.Minute
	// sendTimeout ends a stream whose daemon reads nothing: pings alone would keep it.
	sendTimeout = time.Minute
	// publishedCommand is the largest command that a daemon takes which does not say: gRPC's default.
	publishedCommand = 4 << 20
)

var (
	errReplaced = status.Error(codes.Aborted, "a newer stream of this daemon took over")
	errShutdown = status.Error(codes.Unavailable, "the control plane shuts down")
	errGreeting = status.Error(codes.DeadlineExceeded, "no SyncRequest within "+greeting.String())
	errStuck    = status.Error(codes.DeadlineExceeded, "the daemon read nothing for "+sendTimeout.String())
)

type connectStream = grpc.BidiStreamingServer[netfencev1.DaemonEvent, netfencev1.ControlCommand]

// stream is one stream of a daemon: a reader that notes what the daemon tells, a writer that sends what it does not have.
// Nothing is queued between the two but which attachments to look at.
type stream struct {
	plane *ControlPlane
	grpc  connectStream
	peer  Peer

	// What follows is set before ready is closed.
	daemon     *daemon
	published  bool // it announced nothing
	features   wire.Peer
	maxCommand int // bytes
	instance   string
	ordinal    uint64 // Hello.stream_seq
	ready      chan struct{}

	wake   chan struct{} // of the writer; holds one
	ending sync.Once
	ended  chan struct{}
	err    error // why; set before ended is closed

	away chan struct{} // closed by Shutdown
	left sync.Once

	// The writer's own.
	batch    []*attachment // to decide
	then     *attachment   // to send for next
	refusals []func()      // to tell the user of, without a lock

	// Guarded by daemon.mu.
	number      uint64 // of the last command
	outstanding int    // bytes of commands without an answer
}

// connect serves one stream. It is gRPC's goroutine, and only waits: to return is the one way to end a stream while
// others are reading it or writing to it.
func (c *ControlPlane) connect(grpc connectStream) error {
	s := &stream{
		plane: c, grpc: grpc, peer: caller(grpc.Context()),
		ready: make(chan struct{}), wake: make(chan struct{}, 1), ended: make(chan struct{}), away: make(chan struct{}),
	}
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return errShutdown
	}
	c.streams[s] = struct{}{}
	c.work.Add(2)
	c.mu.Unlock()
	go func() {
		defer c.work.Done()
		s.end(s.read())
		c.mu.Lock()
		delete(c.streams, s)
		c.mu.Unlock()
		select {
		case <-s.ready:
			s.daemon.leave(s, s.err)
		default:
		}
	}()
	go func() {
		defer c.work.Done()
		if err := s.write(); err != nil {
			s.end(err)
		}
	}()
	timeout := time.NewTimer(greeting)
	defer timeout.Stop()
	for {
		select {
		case <-s.ended:
			return s.err
		case <-s.ready:
			timeout.Stop()
			<-s.ended
			return s.err
		case <-timeout.C:
			s.end(errGreeting)
		}
	}
}

// end ends the stream; the first reason counts. A nil error is the daemon's own wish.
func (s *stream) end(err error) {
	s.ending.Do(func() {
		s.err = err
		close(s.ended)
	})
}

// goAway has the writer send the daemon away.
func (s *stream) goAway() { s.left.Do(func() { close(s.away) }) }

func (s *stream) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// admit judges who calls, and makes s the stream of its daemon.
func (c *ControlPlane) admit(s *stream, request *netfencev1.SyncRequest) error {
	if err := c.checkSync(request); err != nil {
		return err
	}
	hello := request.GetHello()
	s.published, s.features = hello == nil, wire.NewPeer(hello.GetFeatures())
	s.instance, s.ordinal = hello.GetInstanceId(), hello.GetStreamSeq()
	s.maxCommand = publishedCommand
	if n := hello.GetMaxCommandBytes(); n > 0 {
		s.maxCommand = int(min(n, 1<<30))
	}
	s.peer.DaemonID, s.peer.Hostname, s.peer.Metadata = request.GetDaemonId(), request.GetHostname(), request.GetMetadata()
	if err := c.authorize(s.grpc.Context(), s.peer); err != nil {
		c.log.Warn("daemon refused", "daemon", s.peer.DaemonID, "address", s.peer.Address, "err", err)
		return err
	}

	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return errShutdown
	}
	d := c.daemons[request.GetDaemonId()]
	if d == nil {
		d = &daemon{plane: c, id: request.GetDaemonId(), attachments: make(map[string]*attachment)}
		c.daemons[d.id] = d
	}
	d.mu.Lock()
	c.mu.Unlock()
	old := d.stream
	if old != nil && old.instance != "" && old.instance == s.instance && s.ordinal < old.ordinal {
		d.mu.Unlock()
		return errReplaced
	}
	s.daemon = d
	fresh := d.take(s, request)
	view := d.describe()
	d.mu.Unlock()
	if old != nil {
		old.end(errReplaced)
	}

	if view.LastError != "" {
		c.log.Info("daemon came back", "daemon", d.id, "last_stream", view.LastError)
	}
	if f := c.opts.OnConnect; f != nil {
		f(view)
	}
	if f := c.opts.OnAttach; f != nil {
		for _, a := range fresh {
			f(a)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stream == s {
		for _, a := range d.attachments {
			d.ask(a)
		}
	}
	close(s.ready)
	return nil
}

// write greets the daemon, and sends what it does not have until the stream ends.
func (s *stream) write() error {
	select {
	case <-s.ready:
	case <-s.away:
		return errShutdown
	case <-s.ended:
		return nil
	}
	stuck := time.AfterFunc(sendTimeout, func() { s.end(errStuck) })
	defer stuck.Stop()
	ack := &netfencev1.SyncAck{}
	if !s.published {
		ack.Welcome = &netfencev1.Welcome{Features: wire.Features(), ServerId: s.plane.opts.ServerID}
		if every := s.plane.opts.Heartbeat; every > 0 {
			ack.Welcome.HeartbeatInterval = durationpb.New(every)
		}
	}
	command := &netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_SyncAck{SyncAck: ack}}
	for {
		stuck.Reset(sendTimeout)
		if err := s.grpc.Send(command); err != nil {
			return err
		}
		stuck.Stop()
		for command = s.next(); command == nil; command = s.next() {
			select {
			case <-s.wake:
			case <-s.away:
				return s.leave()
			case <-s.ended:
				return nil
			}
		}
	}
}

// leave asks the daemon to come back later, to whoever answers then. It ends the stream when it has finished.
func (s *stream) leave() error {
	if !s.features.Has(wire.GoAway) {
		return errShutdown
	}
	within := durationpb.New(s.plane.opts.ReconnectWithin)
	away := &netfencev1.GoAway{Min: durationpb.New(0), Max: within}
	return s.grpc.Send(&netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_GoAway{GoAway: away}})
}
