// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/datapath"
)

// keepaliveTime is above the five minutes that a stock gRPC server grants its clients: it counts more frequent pings as
// abuse and ends the connection (grpc.io, keepalive EnforcementPolicy.MinTime). A dead peer is noticed sooner all the
// same: grpc-go sets TCP_USER_TIMEOUT to keepaliveTimeout, and heartbeats are more frequent.
const (
	keepaliveTime    = 6 * time.Minute
	keepaliveTimeout = 20 * time.Second
)

// dialRemote gives the control client connections to address, host:port, in plaintext: config refuses another host
// unless control_plane.insecure says so.
func dialRemote(address string, kernel *datapath.Datapath) func(context.Context) (controlclient.Conn, error) {
	dialer := exemptDialer(kernel)
	return func(context.Context) (controlclient.Conn, error) {
		// passthrough leaves the name to the dialer, whose resolver is exempt too.
		conn, err := grpc.NewClient("passthrough:///"+address,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return dialer.DialContext(ctx, "tcp", address)
			}),
			// A retried Connect would repeat a SyncRequest that is out of date; the control client dials anew.
			grpc.WithDisableRetry(),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", address, err)
		}
		return conn, nil
	}
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
