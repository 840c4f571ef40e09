// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/config"
)

// maxResponseBytes bounds what the daemon may answer.
const maxResponseBytes = 64 << 20

// call runs f with a client of the daemon.
func (a *app) call(ctx context.Context, f func(netfencev1.DaemonServiceClient) error) error {
	socket := a.socket
	if socket == "" {
		var err error
		if socket, err = config.Socket(a.environ); err != nil {
			return err
		}
	}
	return callAt(ctx, socket, f)
}

// callAt connects before gRPC does: gRPC would report a missing daemon as UNAVAILABLE, which is also what the daemon
// answers when its control plane is out of reach.
func callAt(ctx context.Context, socket string, f func(netfencev1.DaemonServiceClient) error) error {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return &notRunningError{socket: socket}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("socket %s: permission denied (the daemon obeys root only; use sudo)", socket)
	case err != nil:
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	once := &onceDialer{conn: raw, socket: socket}
	defer once.close()
	conn, err := grpc.NewClient("passthrough:///netfenced",
		grpc.WithContextDialer(once.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A policy of 100,000 rules is more than the 4 MiB that gRPC grants by default.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
	)
	if err != nil {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	defer conn.Close()
	return f(netfencev1.NewDaemonServiceClient(conn))
}

// onceDialer hands out one connection. A second dial means that the daemon went away during the call.
type onceDialer struct {
	socket string

	mu   sync.Mutex
	conn net.Conn // nil once handed out; then gRPC closes it
}

func (d *onceDialer) dial(context.Context, string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn == nil {
		return nil, fmt.Errorf("socket %s: connection lost", d.socket)
	}
	conn := d.conn
	d.conn = nil
	return conn, nil
}

func (d *onceDialer) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		d.conn.Close()
	}
}
