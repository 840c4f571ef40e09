// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// endlessDaemon streams an event and then nothing, until its caller has enough.
type endlessDaemon struct {
	netfencev1.UnimplementedDaemonServiceServer
}

func (endlessDaemon) Watch(_ *netfencev1.WatchRequest, stream grpc.ServerStreamingServer[netfencev1.EventBatch]) error {
	if err := stream.Send(&netfencev1.EventBatch{Lost: 1}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

type interrupting struct{ interrupt func() }

func (w interrupting) Write(p []byte) (int, error) {
	w.interrupt()
	return len(p), nil
}

// Interrupting is how one stops watching, not a failure.
func TestEventsEndWhenInterrupted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	netfencev1.RegisterDaemonServiceServer(server, endlessDaemon{})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if code := Run(ctx, []string{"--socket", socket, "events", "--follow"}, interrupting{cancel}, io.Discard, Daemon{}); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}
