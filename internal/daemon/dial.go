// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/datapath"
)

// dialRemote gives the control client connections to address, host:port, in plaintext: config refuses another host
// unless control_plane.insecure says so.
func dialRemote(address string, kernel *datapath.Datapath) func(context.Context) (controlclient.Conn, error) {
	dialer := exemptDialer(kernel)
	// passthrough leaves the name to the dialer, whose resolver is exempt too.
	return controlclient.Dial("passthrough:///"+address, insecure.NewCredentials(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}))
}

// exemptDialer dials past the filters of the devices that the daemon shares with a workload: an attachment of eth0
// with direction egress would otherwise cut the daemon off from the control plane that could mend it. The sockets that
// ask for the control plane's address are the daemon's own too, so Go's resolver asks and not the C library's.
func exemptDialer(kernel *datapath.Datapath) *net.Dialer {
	exempt := func(_, _ string, conn syscall.RawConn) error { return kernel.Exempt(conn) }
	asking := &net.Dialer{Control: exempt}
	return &net.Dialer{
		Control: exempt,
		Resolver: &net.Resolver{
			PreferGo: true,
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				return asking.DialContext(ctx, network, address)
			},
		},
	}
}
