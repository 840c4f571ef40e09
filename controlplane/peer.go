// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

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

// Query is a DNS query of an attachment with dns.mode proxy.
type Query struct {
	Attachment Attachment
	Name       string // as asked, with its final dot
	Type       string // "A", "AAAA", …
}

// Answer is the decision on a query. The zero value refuses the name.
type Answer struct {
	Allow bool
	Learn bool          // the addresses of the answer may be reached, for its TTL
	Addrs []netip.Addr  // to answer with; none: the daemon asks upstream
	TTL   time.Duration // of Addrs, in whole seconds
}

// service is what gRPC sees of a ControlPlane.
type service struct {
	netfencev1.UnimplementedControlPlaneServer
	plane *ControlPlane
}

func (s *service) Connect(stream connectStream) error { return s.plane.connect(stream) }

func (s *service) QueryDns(ctx context.Context, request *netfencev1.DnsQueryRequest) (*netfencev1.DnsQueryResponse, error) {
	c := s.plane
	if c.opts.DNS == nil {
		return nil, status.Error(codes.Unimplemented, "this control plane decides no DNS queries")
	}
	caller := caller(ctx)
	a, ok := c.find(request.GetId(), caller.Address)
	if !ok {
		return nil, status.Error(codes.NotFound, "no attachment of that id")
	}
	caller.DaemonID = a.DaemonID
	if err := c.authorize(ctx, caller); err != nil {
		return nil, err
	}
	answer, err := c.opts.DNS(ctx, Query{Attachment: a, Name: request.GetDomain(), Type: request.GetQueryType()})
	if err != nil {
		return nil, fmt.Errorf("query %s %s: %w", request.GetDomain(), request.GetQueryType(), err)
	}
	response := &netfencev1.DnsQueryResponse{
		Allow: answer.Allow, AddToFilter: answer.Learn, TtlSeconds: uint32(min(max(answer.TTL/time.Second, 0), math.MaxInt32)),
	}
	for _, addr := range answer.Addrs {
		response.Ips = append(response.Ips, addr.String())
	}
	return response, nil
}

// find looks for the attachment that asks: first at the daemon of the same connection.
func (c *ControlPlane) find(id, address string) (Attachment, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for pass := range 2 {
		for _, d := range c.daemons {
			d.mu.Lock()
			if d.stream == nil || (d.stream.peer.Address == address) != (pass == 0) {
				d.mu.Unlock()
				continue
			}
			if a := d.attachments[id]; a != nil && !a.absent {
				view := d.view(a)
				d.mu.Unlock()
				return view, true
			}
			d.mu.Unlock()
		}
	}
	return Attachment{}, false
}
