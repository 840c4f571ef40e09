// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Conn is what one dial gives: a connection of its own, closed when its stream ends.
type Conn interface {
	grpc.ClientConnInterface
	io.Closer
}

// A stock gRPC server counts a ping more often than every five minutes as abuse and ends the
// connection after two (grpc.io, keepalive EnforcementPolicy.MinTime). A dead peer is noticed sooner
// all the same: with keepalive on, grpc-go sets TCP_USER_TIMEOUT to keepaliveTimeout, and a heartbeat
// is on its way at least every maxHeartbeat.
const (
	keepaliveTime    = 6 * time.Minute
	keepaliveTimeout = 20 * time.Second
)

// Dial gives the Options.Dial for a control plane at address, host:port or another target of gRPC's.
func Dial(address string, creds credentials.TransportCredentials, more ...grpc.DialOption) func(context.Context) (Conn, error) {
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		// Retries are ours: a retried Connect would repeat a SyncRequest that is out of date.
		grpc.WithDisableRetry(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	}, more...)
	return func(context.Context) (Conn, error) {
		conn, err := grpc.NewClient(address, opts...)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", address, err)
		}
		return conn, nil
	}
}
