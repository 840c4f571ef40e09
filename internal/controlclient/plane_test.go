// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// plane is a control plane that does nothing by itself: the test holds each stream in its hands.
type plane struct {
	netfencev1.UnimplementedControlPlaneServer
	t        *testing.T
	listener *bufconn.Listener
	streams  chan *peerStream
	// query answers QueryDns; nil: UNIMPLEMENTED, as the policy folder does.
	query func(context.Context, *netfencev1.DnsQueryRequest) (*netfencev1.DnsQueryResponse, error)
}

// peerStream is one daemon's stream. end ends it with an error.
type peerStream struct {
	grpc.BidiStreamingServer[netfencev1.DaemonEvent, netfencev1.ControlCommand]
	t   *testing.T
	end chan error
}

// newPlane serves over an in-memory connection until the test ends.
func newPlane(t *testing.T) *plane {
	p := &plane{t: t, listener: bufconn.Listen(1 << 20), streams: make(chan *peerStream)}
	server := grpc.NewServer()
	netfencev1.RegisterControlPlaneServer(server, p)
	served := make(chan error, 1)
	go func() { served <- server.Serve(p.listener) }()
	t.Cleanup(func() {
		server.Stop()
		// A test may have ended before it served.
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	})
	return p
}

func (p *plane) Connect(stream grpc.BidiStreamingServer[netfencev1.DaemonEvent, netfencev1.ControlCommand]) error {
	s := &peerStream{BidiStreamingServer: stream, t: p.t, end: make(chan error, 1)}
	select {
	case p.streams <- s:
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	select {
	case err := <-s.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func (p *plane) QueryDns(ctx context.Context, r *netfencev1.DnsQueryRequest) (*netfencev1.DnsQueryResponse, error) {
	if p.query == nil {
		return p.UnimplementedControlPlaneServer.QueryDns(ctx, r)
	}
	return p.query(ctx, r)
}

func (p *plane) dial(context.Context, string) (Conn, error) {
	return grpc.NewClient("passthrough:///plane",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return p.listener.DialContext(ctx)
		}))
}

// accept takes the next stream and its SyncRequest.
func (p *plane) accept() (*peerStream, *netfencev1.SyncRequest) {
	p.t.Helper()
	s := <-p.streams
	sync := s.recv().GetSync()
	if sync == nil {
		p.t.Fatal("the first event is not SyncRequest")
	}
	return s, sync
}

// connect is accept, and the answer of a peer that knows our additions.
func (p *plane) connect() (*peerStream, *netfencev1.SyncRequest) {
	p.t.Helper()
	s, sync := p.accept()
	s.syncAck(&netfencev1.Welcome{ServerId: "test"})
	return s, sync
}

func (s *peerStream) recv() *netfencev1.DaemonEvent {
	s.t.Helper()
	event, err := s.Recv()
	if err != nil {
		s.t.Fatalf("receive: %v", err)
	}
	return event
}

func (s *peerStream) send(cmd *netfencev1.ControlCommand) {
	s.t.Helper()
	if err := s.Send(cmd); err != nil {
		s.t.Fatalf("send: %v", err)
	}
}

func (s *peerStream) syncAck(welcome *netfencev1.Welcome) {
	s.t.Helper()
	s.send(&netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_SyncAck{
		SyncAck: &netfencev1.SyncAck{Welcome: welcome},
	}})
}

// ack answers a Subscribed, as a published peer does: without a number.
func (s *peerStream) ack(id string, mode netfencev1.PolicyMode) {
	s.t.Helper()
	s.send(&netfencev1.ControlCommand{Id: id, Command: &netfencev1.ControlCommand_SubscribedAck{
		SubscribedAck: &netfencev1.SubscribedAck{Mode: mode},
	}})
}

// result sends a numbered command and gives its answer. Nothing else may come before it.
func (s *peerStream) result(cmd *netfencev1.ControlCommand) *netfencev1.CommandResult {
	s.t.Helper()
	s.send(cmd)
	event := s.recv()
	if event.GetResult() == nil {
		s.t.Fatalf("want a result of %v, got %v", cmd, event)
	}
	return event.GetResult()
}

func wantEqual(t *testing.T, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
