// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
	"github.com/netfence/netfence/test/harness"
)

// server is a control plane of this process on loopback.
type server struct {
	*controlplane.ControlPlane
	Address string
	stop    func()
}

func newServer(t testing.TB, address string, opts controlplane.Options) *server {
	t.Helper()
	opts.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	plane, err := controlplane.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(controlplane.ServerOptions(), grpc.WaitForHandlers(true))...)
	plane.Register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	return &server{ControlPlane: plane, Address: listener.Addr().String(), stop: func() {
		if err := plane.Shutdown(context.Background()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		s.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	}}
}

func (s *server) outcome(t testing.TB, change controlplane.Change) controlplane.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	outcome, err := s.Wait(ctx, change)
	if err != nil {
		t.Fatalf("%v, so far %+v", err, outcome)
	}
	return outcome
}

// The real daemon under a control plane of this package: what the outcome says is what `policy show` says, a refusal has
// the daemon's reason, and another server after a restart finds nothing to send.
func TestRealDaemon(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	var decide decider
	decide.next(false)
	refused := make(chan controlplane.Refusal, 10)
	opts := controlplane.Options{
		Policy: decide.policy, OnRefused: func(_ controlplane.Attachment, r controlplane.Refusal) { refused <- r },
	}
	first := newServer(t, "127.0.0.1:0", opts)
	d := harness.New(t, nil, "NETFENCE_CONTROL_PLANE_URL="+first.Address)
	d.Start(t)
	testenv.Eventually(t, "a connection", func() bool { return d.Status(t).ControlPlaneState == "connected" })
	var ids []string
	for range 5 {
		ids = append(ids, d.Attach(t, "--cgroup", testenv.NewCgroup(t).Path))
	}
	decide.next(false)
	if outcome := first.outcome(t, first.Refresh(controlplane.Selector{})); outcome.Applied != len(ids) || !outcome.OK() {
		t.Errorf("outcome %+v", outcome)
	}
	revision, err := controlplane.Revision(decide.shared.Load())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if got := d.Show(t, id).Applied.Revision; got != revision {
			t.Errorf("%s has %q, want %q", id, got, revision)
		}
	}

	bad := rules(1, 1)
	bad.DNS.Forward = []policy.ZoneForward{{Zone: "corp", To: nil}}
	if outcome := first.outcome(t, first.Set(ids[0], bad)); outcome.Refused != 1 || outcome.Listed[0].Error == "" {
		t.Errorf("outcome of a bad policy: %+v", outcome)
	}
	<-refused
	if got := d.Show(t, ids[0]).Applied.Revision; got != revision {
		t.Errorf("a refused policy left %q", got)
	}

	first.stop()
	sent := make(chan controlplane.Attachment, 100)
	opts.Policy = func(ctx context.Context, a controlplane.Attachment) (*policy.Policy, error) {
		sent <- a
		return decide.policy(ctx, a)
	}
	second := newServer(t, first.Address, opts)
	defer second.stop()
	for range ids {
		if a := <-sent; a.Revision != revision || a.Pending {
			t.Errorf("came back as %+v", a)
		}
	}
	if outcome := second.outcome(t, second.Refresh(controlplane.Selector{})); outcome.Applied != len(ids) {
		t.Errorf("outcome %+v", outcome)
	}
	if outcome := second.outcome(t, second.Set(ids[1], rules(9, 9))); outcome.Applied != 1 {
		t.Errorf("outcome of one that leaves the others: %+v", outcome)
	}
	if got := d.Show(t, ids[2]).Applied.Revision; got != revision {
		t.Errorf("another one's change left %q", got)
	}
	for _, id := range ids {
		d.Must(t, "detach", "--id", id)
	}
	testenv.Eventually(t, "the end of all", func() bool { return second.Daemons()[0].Attachments == 0 })
}
