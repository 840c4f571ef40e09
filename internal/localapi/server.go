// SPDX-License-Identifier: Apache-2.0

// Package localapi serves DaemonService on the daemon's unix socket.
//
// It changes desired state and waits until the kernel has it; it touches no map and no stream itself. Whoever may
// open the socket is root, so there is no authorization beyond the file's mode.
package localapi

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// Subscriber gets the first policy of an attachment from the control plane.
type Subscriber interface {
	// Subscribe returns when the first policy of the pending attachment id is in force in the kernel, or at once when
	// the configuration says not to wait. A *SubscribeError tells the caller of Attach why there is none.
	Subscribe(ctx context.Context, id string) error
	// Announce tells the control plane of id, which has a policy: it is new, or its metadata has changed.
	Announce(id string)
}

// Resolver finds targets. Its errors are those of package target.
type Resolver interface {
	Interface(name string, direction target.Direction, netns string) (target.Target, error)
	Cgroup(path string) (target.Target, error)
	PID(pid int) (target.Target, error)
}

// Events hands out what was observed; *events.Hub does.
type Events interface {
	// Subscribe begins a subscription to the ids, to all attachments where there is none.
	Subscribe(ids ...string) *events.Subscription
}

// Counters of an attachment since it was attached. What is counted as would-deny, because the policy was in audit, is
// allowed.
type Counters struct {
	PacketsAllowed, PacketsBlocked                            uint64
	DNSQueriesAllowed, DNSQueriesBlocked, DNSQueriesWouldDeny uint64
	// Drops counts dropped packets by reason, WouldDeny those that audit let pass.
	Drops, WouldDeny map[string]uint64
	// FlowsUnnoted counts packets that passed by a name but whose flow found no room.
	FlowsUnnoted uint64
}

// Learned is an address that names have opened, for one set of ports.
type Learned struct {
	Addr      netip.Addr
	Names     []string       // the newest first
	Ports     []policy.Ports // none: every protocol
	Remaining time.Duration  // until no new flow passes
}

// Status is what the daemon knows of itself.
type Status struct {
	Version, DaemonID, Hostname string
	ControlPlaneState           netfencev1.ConnectionState
	ControlPlaneAddress         string
	// Problems are for an operator to look at, one line each.
	Problems []string
}

// maxRequestBytes is what a policy may take here, as much as in a control plane's command.
const maxRequestBytes = 16 << 20

// Options are what a Server needs. Store, Subscriber, Resolver, Counters and Status are required.
type Options struct {
	Store      *state.Store
	Subscriber Subscriber
	Resolver   Resolver
	// Counters reads the kernel's counters; false when the kernel does not hold id.
	Counters func(id string) (Counters, bool)
	// Totals sums the counters of all attachments. Nil: GetStatus has none.
	Totals func() (Counters, error)
	Status func() Status
	// DNS tells where the DNS server of an attachment is: its address with the port, and addresses as a resolv.conf has
	// them. Empty: there is none. Nil: for nobody.
	DNS func(id string) (address string, nameservers []string)
	// Inherit has an attachment learn what another has learned, by its own rules. Nil: nothing.
	Inherit func(ctx context.Context, from, to string) error
	// Learned lists what an attachment has learned and what holds still. Nil: nothing.
	Learned func(id string) []Learned
	// Guard is what Get shows above the policy. Nil: none.
	Guard *policy.Guard
	// Boot reads the boot clock, by which rules expire. Nil: Explain takes no rule for expired.
	Boot func() (time.Duration, error)
	// Blocked tells why nothing of an attachment's passes whatever its policy says. Nil, or empty: nothing of the kind.
	Blocked func(id string) string
	// Look tells who is in a cgroup. Nil: target.Look.
	Look func(cgroup string) target.Occupants
	// Embedded: the control plane is the daemon's own folder, whose policies have no names to attach by.
	Embedded bool
	// Strict refuses an Attach that would leave something of a cgroup unconfined, instead of warning about it.
	Strict bool
	// DetachOrphans ends what the kernel filters and the store does not know. Nil: there is nothing of the kind.
	DetachOrphans func() error
	// Events is what Watch streams. Nil: Watch is unimplemented.
	Events Events
	// InstanceID names this run of the daemon in what Watch streams.
	InstanceID string
	// KernelTimeout bounds how long a call waits for the kernel alone; 0: 10 s. What the control plane takes is the
	// Subscriber's.
	KernelTimeout time.Duration
	Log           *slog.Logger // nil: slog.Default
}

// Server is DaemonService.
type Server struct {
	netfencev1.UnimplementedDaemonServiceServer
	opts    Options
	grpc    *grpc.Server
	health  *health.Server
	flights flights

	stopping context.Context // done when calls that end only with their caller are to end
	stop     context.CancelFunc
}

// New returns a server that does not listen yet.
func New(opts Options) *Server {
	if opts.KernelTimeout == 0 {
		opts.KernelTimeout = 10 * time.Second
	}
	if opts.Look == nil {
		opts.Look = target.Look
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.DNS == nil {
		opts.DNS = func(string) (string, []string) { return "", nil }
	}
	if opts.Inherit == nil {
		opts.Inherit = func(context.Context, string, string) error { return nil }
	}
	if opts.Learned == nil {
		opts.Learned = func(string) []Learned { return nil }
	}
	if opts.Boot == nil {
		opts.Boot = func() (time.Duration, error) { return 0, nil }
	}
	if opts.Blocked == nil {
		opts.Blocked = func(string) string { return "" }
	}
	s := &Server{opts: opts, health: health.NewServer()}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(grpc.UnaryInterceptor(s.answer), grpc.StreamInterceptor(s.stream), grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(maxRequestBytes))
	netfencev1.RegisterDaemonServiceServer(s.grpc, s)
	healthv1.RegisterHealthServer(s.grpc, s.health)
	return s
}

// Serve answers on listener, which it closes, until Stop.
func (s *Server) Serve(listener net.Listener) error {
	return s.grpc.Serve(listener)
}

// Stop refuses new calls, ends watches and waits for the calls under way until ctx is done; then it cancels them and
// waits for their roll-back. So long also a watch takes whose caller does not read. When it returns no call is left.
func (s *Server) Stop(ctx context.Context) {
	s.health.Shutdown()
	s.stop()
	cancelled := context.AfterFunc(ctx, s.grpc.Stop)
	s.grpc.GracefulStop()
	cancelled()
}

// answer is where errors become status codes.
func (s *Server) answer(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	response, err := handler(ctx, request)
	return response, s.refusal(info.FullMethod, err)
}

// stream likewise.
func (s *Server) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.refusal(info.FullMethod, handler(server, stream))
}

func (s *Server) refusal(method string, err error) error {
	if err != nil {
		err = toStatus(err)
		s.opts.Log.Debug("call refused", "method", method, "err", err)
	}
	return err
}
