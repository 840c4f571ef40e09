// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// Peer is who calls: what it says that it is, and what it proves.
type Peer struct {
	DaemonID string            // that it claims
	Hostname string            // that it claims; empty in a query
	Metadata map[string]string // that it claims; nil in a query
	Address  string            // of the connection
	// Token is that of "authorization: Bearer …"; empty without. It is not checked by this package.
	Token string
	// TLS is the state of the connection; nil in plaintext. Its PeerCertificates are only verified as far as the server's
	// tls.Config.ClientAuth asks.
	TLS *tls.ConnectionState
}

// Certificate is that of the peer, when it was verified; else nil.
func (p Peer) Certificate() *x509.Certificate {
	if p.TLS == nil || len(p.TLS.VerifiedChains) == 0 {
		return nil
	}
	return p.TLS.VerifiedChains[0][0]
}

// Names are the subject alternative names of its verified certificate: DNS names, and URIs such as SPIFFE ids.
func (p Peer) Names() []string {
	certificate := p.Certificate()
	if certificate == nil {
		return nil
	}
	names := append([]string(nil), certificate.DNSNames...)
	for _, uri := range certificate.URIs {
		names = append(names, uri.String())
	}
	return names
}

// caller is the peer of an RPC, without what it claims.
func caller(ctx context.Context) Peer {
	var p Peer
	if from, ok := peer.FromContext(ctx); ok {
		p.Address = from.Addr.String()
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
			p.TLS = &info.State
		}
	}
	if values := metadata.ValueFromIncomingContext(ctx, "authorization"); len(values) == 1 {
		if scheme, token, _ := strings.Cut(values[0], " "); strings.EqualFold(scheme, "bearer") {
			p.Token = strings.TrimSpace(token)
		}
	}
	return p
}

func (c *ControlPlane) authorize(ctx context.Context, p Peer) error {
	if c.opts.Authorize == nil {
		return nil
	}
	err := c.opts.Authorize(ctx, p)
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.PermissionDenied, err.Error())
}

// Reauthorize asks Options.Authorize again about every daemon that has a stream, and ends the streams of those that it
// refuses: a credential may have been taken back since. What is in force at them stays.
func (c *ControlPlane) Reauthorize(ctx context.Context) {
	c.mu.RLock()
	streams := slices.Collect(maps.Keys(c.streams))
	c.mu.RUnlock()
	for _, s := range streams {
		select {
		case <-s.ready:
		default:
			continue // it has yet to be asked for the first time, or is being asked
		}
		if err := c.authorize(ctx, s.peer); err != nil && ctx.Err() == nil {
			c.log.Warn("daemon refused; its stream is ended", "daemon", s.peer.DaemonID, "address", s.peer.Address, "err", err)
			s.end(err)
		}
	}
}

// service is what gRPC sees of a ControlPlane.
type service struct {
	netfencev1.UnimplementedControlPlaneServer
	plane *ControlPlane
}

func (s *service) Connect(stream connectStream) error { return s.plane.connect(stream) }
