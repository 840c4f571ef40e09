// SPDX-License-Identifier: Apache-2.0

// Package controlplanetest tests control planes that are built on package controlplane, without a kernel and without
// root: its daemons speak the protocol as netfenced does, and only note what they would enforce.
//
//	server := controlplanetest.Serve(t, plane)
//	daemon := server.Connect(t, controlplanetest.Config{ID: "host-1"})
//	id := daemon.Attach(t, "tap0", map[string]string{"tenant": "acme"})
//	if got := daemon.Policy(id); got.Mode != policy.ModeAllowlist { … }
package controlplanetest

import (
	"context"
	"errors"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/netfence/netfence/controlplane"
)

// Server is a control plane that daemons reach within the process.
type Server struct {
	listener *bufconn.Listener
}

// Serve serves the control plane until the test ends. Daemons are then disconnected first.
func Serve(t testing.TB, plane *controlplane.ControlPlane) *Server {
	t.Helper()
	s := &Server{listener: bufconn.Listen(1 << 16)}
	server := grpc.NewServer(append(controlplane.ServerOptions(), grpc.WaitForHandlers(true))...)
	plane.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(s.listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // which is what it says when it was stopped before it began
			t.Errorf("control plane: %v", err)
		}
		if err := plane.Shutdown(context.Background()); err != nil { // streams are gone: their goroutines are waited for
			t.Errorf("control plane: %v", err)
		}
	})
	return s
}

// Dial opens a connection to the server, in plaintext, until the test ends.
func (s *Server) Dial(t testing.TB, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }),
	}, opts...)
	conn, err := grpc.NewClient("passthrough:///control-plane", opts...)
	if err != nil {
		t.Fatalf("control plane: %v", err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("control plane: %v", err)
		}
	})
	return conn
}

// Connect makes a daemon and connects it, until the test ends or Disconnect.
func (s *Server) Connect(t testing.TB, config Config) *Daemon {
	t.Helper()
	return Connect(t, s.Dial(t), config)
}
