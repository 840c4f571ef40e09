// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/pki"
)

// dialer gives the control client its connections.
func dialer(c config.ControlPlane, kernel *datapath.Datapath) controlclient.Dialer {
	exempt := exemptDialer(kernel)
	files := pki.Files{CA: c.TLS.CAFile, Cert: c.TLS.CertFile, Key: c.TLS.KeyFile, CRL: c.TLS.CRLFile}
	return controlclient.Dialer{
		TokenFile: c.TokenFile,
		Options: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return exempt.DialContext(ctx, "tcp", address)
		})},
		Credentials: func(address string) (credentials.TransportCredentials, func() error, error) {
			if !c.Encrypted() {
				return insecure.NewCredentials(), nil, nil
			}
			peer := pki.Peer{Name: c.TLS.ServerName, SPIFFEID: c.TLS.SPIFFEID}
			if host, _, err := net.SplitHostPort(address); err == nil && peer == (pki.Peer{}) {
				peer.Name = host
			}
			config, connection, err := files.Client(peer)
			if err != nil {
				return nil, nil, err
			}
			return credentials.NewTLS(config), connection.Revoked, nil
		},
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
