// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
)

// plane is a control plane that decides nothing: the test hears every event and sends every command but the SyncAck.
type plane struct {
	netfencev1.UnimplementedControlPlaneServer

	events chan *netfencev1.DaemonEvent

	mu     sync.Mutex
	stream netfencev1.ControlPlane_ConnectServer // the newest
	end    chan struct{}                         // ends it when closed
}

// newPlane serves outside, and returns the environment that makes a daemon dial it.
func (s *scene) newPlane(t *testing.T, address netip.AddrPort) *plane {
	t.Helper()
	p := &plane{events: make(chan *netfencev1.DaemonEvent, 1024)} // more than any test has
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	netfencev1.RegisterControlPlaneServer(server, p)
	listener := s.Outside.Listen(t, "tcp", address.String())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("control plane: %v", err)
		}
	})
	s.Env = append(s.Env, fmt.Sprintf("NETFENCE_CONTROL_PLANE_URL=%s", address), "NETFENCE_CONTROL_PLANE_INSECURE=true")
	return p
}

// Connect acknowledges the sync and tells the test of the rest.
func (p *plane) Connect(stream netfencev1.ControlPlane_ConnectServer) error {
	end := make(chan struct{})
	p.mu.Lock()
	p.stream, p.end = stream, end
	p.mu.Unlock()
	failed := make(chan error, 1)
	go func() {
		for {
			event, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			p.events <- event
		}
	}()
	select {
	case err := <-failed:
		return err
	case <-end:
		return nil
	}
}

// Sever ends the newest stream.
func (p *plane) Sever() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.end)
}

// Send sends a command on the newest stream.
func (p *plane) Send(t *testing.T, command *netfencev1.ControlCommand) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.stream.Send(command); err != nil {
		t.Fatalf("control plane: send: %v", err)
	}
}

// Await returns the next event that get takes, and passes over the others.
func Await[E comparable](t *testing.T, p *plane, get func(*netfencev1.DaemonEvent) E) E {
	t.Helper()
	var none E
	for deadline := time.After(testenv.Patience); ; {
		select {
		case event := <-p.events:
			if e := get(event); e != none {
				return e
			}
		case <-deadline:
			t.Fatalf("control plane: no %T within %s", none, testenv.Patience)
		}
	}
}

// Synced waits for a stream to open, and acknowledges it.
func (p *plane) Synced(t *testing.T) *netfencev1.SyncRequest {
	t.Helper()
	sync := Await(t, p, (*netfencev1.DaemonEvent).GetSync)
	p.Send(t, &netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_SyncAck{SyncAck: &netfencev1.SyncAck{
		Welcome: &netfencev1.Welcome{Features: []string{"results"}},
	}}})
	return sync
}

// Command sends a numbered command and returns what became of it.
func (p *plane) Command(t *testing.T, command *netfencev1.ControlCommand) *netfencev1.CommandResult {
	t.Helper()
	command.Number = uint64(testenv.Monotonic())
	p.Send(t, command)
	for {
		if r := Await(t, p, (*netfencev1.DaemonEvent).GetResult); r.GetNumber() == command.GetNumber() {
			return r
		}
	}
}

// attachBy attaches under block-all of the control plane.
func (s *scene) attachBy(t *testing.T, p *plane, args ...string) string {
	t.Helper()
	attached := s.Go(t, append([]string{"attach"}, args...)...)
	id := Await(t, p, (*netfencev1.DaemonEvent).GetSubscribed).GetId()
	p.Send(t, ack(id, blockAll))
	if r := <-attached; r.Code != 0 || strings.TrimSpace(r.Stdout) != id {
		t.Fatalf("attach %v: %+v, subscribed %s", args, r, id)
	}
	return id
}

// ack answers a Subscribed.
func ack(id string, mode netfencev1.PolicyMode, allow ...string) *netfencev1.ControlCommand {
	return &netfencev1.ControlCommand{Id: id, Command: &netfencev1.ControlCommand_SubscribedAck{
		SubscribedAck: &netfencev1.SubscribedAck{Mode: mode, AllowCidrs: cidrs(allow)},
	}}
}

// replace is a BulkUpdate.
func replace(id string, mode netfencev1.PolicyMode, allow ...string) *netfencev1.ControlCommand {
	return &netfencev1.ControlCommand{Id: id, Command: &netfencev1.ControlCommand_BulkUpdate{
		BulkUpdate: &netfencev1.BulkUpdate{Mode: mode, AllowCidrs: cidrs(allow)},
	}}
}

func cidrs(allow []string) []*netfencev1.CIDREntry {
	var entries []*netfencev1.CIDREntry
	for _, cidr := range allow {
		entries = append(entries, &netfencev1.CIDREntry{Cidr: cidr})
	}
	return entries
}

const (
	allowlist = netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST
	blockAll  = netfencev1.PolicyMode_POLICY_MODE_BLOCK_ALL
)
