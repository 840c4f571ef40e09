// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

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

func (s *service) QueryDns(ctx context.Context, request *netfencev1.DnsQueryRequest) (*netfencev1.DnsQueryResponse, error) {
	c := s.plane
	if c.opts.DNS == nil {
		return nil, status.Error(codes.Unimplemented, "this control plane decides no DNS queries")
	}
	a, err := c.asker(ctx, request.GetId())
	if err != nil {
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

// asker finds the attachment that asks. Where two daemons claim the same id, it is that of the same connection, or else of
// one that the caller is admitted as.
func (c *ControlPlane) asker(ctx context.Context, id string) (Attachment, error) {
	caller := caller(ctx)
	refused := status.Error(codes.NotFound, "no attachment of that id")
	for pass := range 2 {
		for _, d := range c.index.claimants(id) {
			d.mu.Lock()
			a := d.attachments[id]
			if a == nil || a.absent || d.stream == nil || (d.stream.peer.Address == caller.Address) != (pass == 0) {
				d.mu.Unlock()
				continue
			}
			view := d.view(a)
			d.mu.Unlock()
			caller.DaemonID = view.DaemonID
			if err := c.authorize(ctx, caller); err != nil {
				refused = err
				continue
			}
			return view, nil
		}
	}
	return Attachment{}, refused
}

// index finds the daemon that has an attachment. It is kept only where queries are decided.
type index struct {
	kept bool

	mu      sync.RWMutex         // locked after daemon.mu
	daemons map[string][]*daemon // by attachment; more than one where they claim the same
}

func (x *index) claimants(id string) []*daemon {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.daemons[id])
}

func (x *index) add(id string, d *daemon) {
	if !x.kept {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.daemons[id] = append(x.daemons[id], d)
}

func (x *index) remove(id string, d *daemon) {
	if !x.kept {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	left := slices.DeleteFunc(x.daemons[id], func(other *daemon) bool { return other == d })
	if len(left) == 0 {
		delete(x.daemons, id)
		return
	}
	x.daemons[id] = left
}
