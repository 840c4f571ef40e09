// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// env is a server on a real unix socket over a real store. The kernel, the control plane and the targets are fakes:
// what is shown here holds as far as these behave like package reconciler's kernel, controlclient's Subscribe and
// package target, which have tests of their own; test/e2e puts them together.
type env struct {
	store      *state.Store
	kernel     *fakeKernel
	subscriber *fakeSubscriber
	hub        *events.Hub
	server     *Server
	conn       *grpc.ClientConn
	client     netfencev1.DaemonServiceClient
}

func newEnv(t *testing.T, limits state.Limits, edit ...func(*Options)) *env {
	t.Helper()
	dir := t.TempDir()
	store, err := state.Open(filepath.Join(dir, "state.db"), "boot", state.Options{Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	e := &env{
		store:      store,
		kernel:     &fakeKernel{store: store, holds: make(map[string]*policy.Compiled)},
		subscriber: &fakeSubscriber{store: store, policy: &policy.Policy{Mode: policy.ModeAllowlist}},
		hub:        events.NewHub(0),
	}
	opts := Options{
		Store: store, Subscriber: e.subscriber, Resolver: fakeResolver{}, Counters: e.kernel.counters,
		Totals: e.kernel.totals,
		Status: func() Status {
			return Status{
				Version: "v1", DaemonID: "node-1", Hostname: "host", Problems: []string{"first"},
				ControlPlaneState:   netfencev1.ConnectionState_CONNECTION_STATE_CONNECTED,
				ControlPlaneAddress: "localhost:9000",
			}
		},
		KernelTimeout: time.Minute,
		Events:        e.hub,
		InstanceID:    "run-1",
	}
	for _, change := range edit {
		change(&opts)
	}
	e.server = New(opts)
	socket := filepath.Join(dir, "d.sock")
	listener, err := Listen(t.Context(), socket, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { e.kernel.run(ctx) })
	running.Go(func() {
		if err := e.server.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if e.conn != nil {
			if err := e.conn.Close(); err != nil {
				t.Error(err)
			}
		}
		e.server.Stop(t.Context()) // which is done by now: calls left over are cancelled
		cancel()
		running.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	e.conn, err = grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	e.client = netfencev1.NewDaemonServiceClient(e.conn)
	return e
}

// attach attaches an interface and fails the test if that fails.
func (e *env) attach(t *testing.T, name, key string) string {
	t.Helper()
	r, err := e.client.Attach(t.Context(), attachInterface(name, key))
	if err != nil {
		t.Fatal(err)
	}
	return r.GetId()
}

// nothingLeft checks that neither the store nor the kernel holds anything.
func (e *env) nothingLeft(t *testing.T) {
	t.Helper()
	if list := e.store.List(); len(list) > 0 {
		t.Errorf("left in the store: %+v", list)
	}
	if held := e.kernel.held(); held > 0 {
		t.Errorf("left in the kernel: %d", held)
	}
}

func attachInterface(name, key string) *netfencev1.AttachRequest {
	return &netfencev1.AttachRequest{Target: &netfencev1.AttachRequest_InterfaceName{InterfaceName: name}, Key: key}
}

func wantStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if st := status.Convert(err); st.Code() != code || st.Message() != text {
		t.Errorf("got  %v: %s\nwant %v: %s", st.Code(), st.Message(), code, text)
	}
}

// fakeKernel does what the reconciler and the kernel do together: it brings what it holds to what the store desires.
type fakeKernel struct {
	store *state.Store

	mu     sync.Mutex
	holds  map[string]*policy.Compiled
	refuse error // answer to what is desired from now on
	stuck  bool  // nothing is done any more
}

func (k *fakeKernel) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.store.Dirty():
			for _, id := range k.store.TakeDirty() {
				k.bring(id)
			}
		}
	}
}

func (k *fakeKernel) bring(id string) {
	d, err := k.store.Desired(id)
	if err != nil {
		return
	}
	k.mu.Lock()
	stuck, refuse := k.stuck, k.refuse
	switch {
	case stuck, refuse != nil && !d.Removing:
	case d.Removing:
		delete(k.holds, id)
	default:
		k.holds[id] = d.Compiled
	}
	k.mu.Unlock()
	switch {
	case stuck:
	case d.Removing:
		err = k.store.Removed(d)
	case refuse != nil:
		_, err = k.store.Refused(d, refuse)
	default:
		err = k.store.InForce(d)
	}
	if err != nil {
		panic(err) // the store's file is broken
	}
}

func (k *fakeKernel) set(refuse error, stuck bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuse, k.stuck = refuse, stuck
}

func (k *fakeKernel) held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.holds)
}

func (k *fakeKernel) mode(id string) (policy.Mode, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.holds[id]
	if !ok {
		return 0, false
	}
	return c.Mode, true
}

func (k *fakeKernel) counters(id string) (Counters, bool) {
	if _, ok := k.mode(id); !ok {
		return Counters{}, false
	}
	return Counters{
		PacketsAllowed: 12, PacketsBlocked: 3, Drops: map[string]uint64{"no-rule": 3}, WouldDeny: map[string]uint64{"deny-rule": 6},
		DNSQueriesAllowed: 5, DNSQueriesBlocked: 2, DNSQueriesWouldDeny: 1, FlowsUnnoted: 4,
	}, true
}

func (k *fakeKernel) totals() (Counters, error) {
	return Counters{
		PacketsAllowed: 120, PacketsBlocked: 30, Drops: map[string]uint64{"no-rule": 30}, WouldDeny: map[string]uint64{"deny-rule": 60},
		DNSQueriesAllowed: 50, DNSQueriesBlocked: 20, DNSQueriesWouldDeny: 10,
	}, nil
}

// fakeSubscriber acknowledges with its policy, unless told otherwise.
type fakeSubscriber struct {
	store *state.Store

	mu     sync.Mutex
	policy *policy.Policy // nil: nothing is acknowledged, and nobody waits
	err    error
	asked  chan string   // told of each id, if not nil
	hold   chan struct{} // waited for before the answer, if not nil
	ids    []string      // that were announced
}

func (s *fakeSubscriber) Announce(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids = append(s.ids, id)
}

func (s *fakeSubscriber) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ids)
}

func (s *fakeSubscriber) Subscribe(ctx context.Context, id string) error {
	s.mu.Lock()
	p, fail, asked, hold := s.policy, s.err, s.asked, s.hold
	s.mu.Unlock()
	if asked != nil {
		asked <- id
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail != nil || p == nil {
		return fail
	}
	revision, err := s.store.Apply(id, "test", state.Change{Edit: state.Replace(p), PolicyRevision: "r1", Acknowledge: true})
	if err != nil {
		return err
	}
	return s.store.Wait(ctx, id, revision)
}

func (s *fakeSubscriber) set(change func(*fakeSubscriber)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// fakeResolver knows interfaces eth0 to eth9 and the cgroups below /cg.
type fakeResolver struct{}

func (fakeResolver) Interface(name string, direction target.Direction, netns string) (target.Target, error) {
	switch {
	case netns != "":
		return target.Target{}, &target.OtherNetnsError{Name: name, Netns: netns, HostEnd: "veth1"}
	case len(name) != 4 || name[:3] != "eth":
		return target.Target{}, &target.NotFoundError{Object: "interface " + name, Cause: "no such interface"}
	}
	if direction == target.DirectionAuto {
		direction = target.Ingress
	}
	return target.Target{
		Type: target.Interface, Name: name, Ifindex: int(name[3]-'0') + 1, NetnsCookie: 1, Direction: direction, LinkKind: "veth",
	}, nil
}

func (fakeResolver) Cgroup(path string) (target.Target, error) {
	if path == "/sys/fs/cgroup/memory/a" {
		return target.Target{}, &target.InvalidError{
			Object: "cgroup " + path, Cause: "is of cgroup v1", Next: "the v2 mount is /sys/fs/cgroup/unified",
		}
	}
	return target.Target{Type: target.Cgroup, Name: path, CgroupID: uint64(len(path))}, nil
}

func (fakeResolver) PID(pid int) (target.Target, error) {
	if pid <= 0 {
		return target.Target{}, &target.InvalidError{Object: "pid 0", Cause: "is no process"}
	}
	return fakeResolver{}.Cgroup("/cg/of-pid")
}

var errKernel = errors.New("no room left in the kernel")

func listenStream(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// stuck has the kernel do nothing any more, and callers wait for it only briefly.
func (e *env) stuck() {
	e.server.opts.KernelTimeout = 200 * time.Millisecond
	e.kernel.set(nil, true)
}
