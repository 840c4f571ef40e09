// SPDX-License-Identifier: Apache-2.0

// Package controlplane is the server's side of Netfence: it says what workloads may reach, to any number of daemons.
//
//	plane, err := controlplane.New(controlplane.Options{
//		Policy: func(ctx context.Context, a controlplane.Attachment) (*policy.Policy, error) {
//			return policies[a.Metadata["tenant"]], nil
//		},
//	})
//	server := grpc.NewServer(controlplane.ServerOptions()...)
//	plane.Register(server)
//
// The user decides, the package does the rest: streams, acknowledgements, numbers, and what is to be sent at all.
// [ControlPlane.Refresh] says that decisions may have changed, [ControlPlane.Wait] tells when the new ones are in force in
// the kernel of every host, or why not.
//
// What a daemon already has is not sent again, be it after a refresh or a reconnect: policies are compared by a hash of
// their content. What was refused is not sent again until the decision is another. A daemon that is slow gets the latest
// decisions when it is ready for them, and holds up nobody else. A rule that a daemon would read as a wider one, because
// it is older than the field that narrows the rule, is refused here and not sent.
package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

// Options of a ControlPlane. None is required; without Policy, attachments get what Set gives them.
//
// The functions may be called from many goroutines at once, but for one daemon one after the other. While one runs for a
// daemon, nothing else is heard from that daemon, or decided for it; they should not wait for long.
type Options struct {
	// Policy decides for an attachment. It is asked when the attachment comes, when its metadata changes, when its daemon
	// reconnects, and on Refresh.
	// The policy must not be changed afterwards; to return the same pointer for many attachments is cheapest. With nil or
	// an error the attachment keeps what it has, and one that waits for its first policy stays closed until Refresh.
	Policy func(ctx context.Context, a Attachment) (*policy.Policy, error)
	// DNS decides the queries of attachments with dns.mode proxy. Nil: every query fails there.
	DNS func(ctx context.Context, q Query) (Answer, error)
	// Authorize admits a daemon, or refuses it: a status error of gRPC goes out as it is, any other as PERMISSION_DENIED.
	// It also sees each Query, and is asked again by Reauthorize. Nil: whoever reaches the server is the daemon that it says it is.
	Authorize func(ctx context.Context, p Peer) error

	OnConnect    func(d Daemon)                 // a daemon's stream stands
	OnDisconnect func(d Daemon)                 // it ended; d.Err says why
	OnAttach     func(a Attachment)             // an attachment is known that was not, before Policy is asked about it
	OnDetach     func(a Attachment, d Detached) // it is gone
	OnRefused    func(a Attachment, r Refusal)  // a decision did not come into force
	OnStats      func(daemonID string, stats []Stats)

	// QueueBytes bounds what is sent to one daemon and not yet answered. Beyond it, the latest decisions wait. 0: 4 MiB.
	QueueBytes int
	// Attachments bounds how many one daemon may have; one with more is sent away. 0: 32768, as the daemon's own limit.
	Attachments int
	// Remember is how long a daemon without a stream is listed, and told apart from a new one. 0: 10 minutes.
	Remember time.Duration
	// Heartbeat is the time between two reports of counters, at least 1 s. 0: the daemons' own, 30 s.
	Heartbeat time.Duration
	// ReconnectWithin is over what time Shutdown spreads the daemons that it sends away. 0: 10 s.
	ReconnectWithin time.Duration
	ServerID        string       // of this server, for the daemons' logs
	Log             *slog.Logger // nil: slog.Default
}

// ControlPlane serves daemons. Its methods may be called from any goroutine.
type ControlPlane struct {
	opts      Options
	log       *slog.Logger
	documents library
	sequence  atomic.Uint64 // of the latest Refresh or Set
	index     index

	// mu guards what follows. Lock order: ControlPlane.mu before daemon.mu. Neither is held while a function of the
	// user's runs or a message is sent.
	mu      sync.RWMutex
	daemons map[string]*daemon
	own     map[string]*policy.Policy // by attachment, of Set
	streams map[*stream]struct{}
	closing bool
	work    sync.WaitGroup // readers and writers of streams
}

// New returns a control plane that serves nobody until it is registered.
func New(opts Options) (*ControlPlane, error) {
	if opts.QueueBytes < 0 || opts.Attachments < 0 || opts.Remember < 0 || opts.Heartbeat < 0 || opts.ReconnectWithin < 0 {
		return nil, errors.New("control plane: a limit is negative")
	}
	if opts.Heartbeat != 0 && opts.Heartbeat < time.Second {
		return nil, errors.New("control plane: heartbeat below 1s")
	}
	opts.QueueBytes = or(opts.QueueBytes, 4<<20)
	opts.Attachments = or(opts.Attachments, 32768)
	opts.Remember = or(opts.Remember, 10*time.Minute)
	opts.ReconnectWithin = or(opts.ReconnectWithin, 10*time.Second)
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	return &ControlPlane{
		opts:    opts,
		log:     opts.Log,
		daemons: make(map[string]*daemon),
		own:     make(map[string]*policy.Policy),
		streams: make(map[*stream]struct{}),
		index:   index{kept: opts.DNS != nil, daemons: make(map[string][]*daemon)},
	}, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// Register adds the control plane to a gRPC server. See ServerOptions.
func (c *ControlPlane) Register(server grpc.ServiceRegistrar) {
	netfencev1.RegisterControlPlaneServer(server, &service{plane: c})
}

// ServerOptions suit a server for many daemons: small buffers for connections that are mostly silent, and keepalive that
// finds the ones whose host is gone. Credentials are the user's to add.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(4 << 20), // an event is at most 3 MiB
		grpc.ReadBufferSize(4 << 10),
		grpc.WriteBufferSize(16 << 10),
		grpc.MaxConcurrentStreams(1024),  // of one daemon: its stream, and its queries in proxy mode
		grpc.MaxHeaderListSize(64 << 10), // a token is among them
		// Whoever has not said who he is does not stay: a handshake takes seconds, and a stream comes after it.
		grpc.ConnectionTimeout(20 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: time.Minute, Timeout: 20 * time.Second, MaxConnectionIdle: time.Minute,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
}

// Shutdown sends every daemon away, to reconnect at a random time within Options.ReconnectWithin, and returns when their
// streams have ended: what was sent is in force then, or refused. Streams that stand when ctx is done are broken off, and
// its error is returned; what is in force at the daemons stays. New streams are refused from the beginning.
func (c *ControlPlane) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.closing = true
	for s := range c.streams {
		s.goAway()
	}
	c.mu.Unlock()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		c.work.Wait()
	}()
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		err = ctx.Err()
		c.mu.Lock()
		for s := range c.streams {
			s.end(errShutdown)
		}
		c.mu.Unlock()
		<-drained
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.daemons {
		d.stopTimers()
	}
	return err
}
