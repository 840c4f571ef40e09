// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

// askRemote has a control plane decide. Addresses that two of them give are
// those that both give.
func (s *Server) askRemote(ctx context.Context, q *query, v *voice, r *ruling) (outcome, string) {
	if s.Remote == nil {
		return failed, "dns mode proxy without a control plane to ask"
	}
	deadline := q.deadline
	if v.Names.Audit {
		if soon := time.Now().Add(s.TryTimeout); soon.Before(deadline) {
			deadline = soon
		}
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	a, err := s.remotes.ask(ctx, s.Remote, v.Member, q)
	if err != nil {
		r.detail = err.Error()
		return failed, "the control plane did not decide"
	}
	if !a.Allow {
		return refused, "the control plane denies " + q.name
	}
	v.reason, v.learns, v.ruled = "the control plane allows it", a.Learn, true
	v.grant = policy.Grant{Proxy: true}
	if len(a.Addrs) == 0 {
		return allowed, ""
	}
	for _, addr := range a.Addrs {
		if !addr.IsValid() || addr.Zone() != "" {
			return failed, "the control plane gave an address that no answer can hold"
		}
		v.given = append(v.given, addr.Unmap())
	}
	if v.Names.Audit {
		return allowed, ""
	}
	if !r.given {
		r.given, r.addrs, r.ttl = true, v.given, a.TTL
		return allowed, ""
	}
	r.addrs = slices.DeleteFunc(slices.Clone(r.addrs), func(addr netip.Addr) bool { return !slices.Contains(v.given, addr) })
	r.ttl = min(r.ttl, a.TTL)
	return allowed, ""
}

// What a control plane is asked at once, by one attachment and by all: its server need take no more, as package
// controlplane's does not (1,024 of a daemon, streams included). The rest waits, and not for those of others.
const (
	remoteEach = 32
	remoteAll  = 1000
)

// remotes has no question of an attachment asked twice at once of a control plane:
// who asks the same meanwhile has the same word.
type remotes struct {
	places gate

	mu    sync.Mutex
	asked map[remoteKey]*remoteFlight
}

type remoteKey struct {
	id, name string // the attachment's; canonical
	qtype    uint16
}

type remoteFlight struct {
	landed chan struct{} // closed when the rest is there
	answer RemoteAnswer
	err    error
	left   bool // who had it asked did not wait for the end
}

// ask asks for q, or waits for what somebody else is told who asks already. If
// that one has no more time and ctx has, it is asked again.
func (m *remotes) ask(ctx context.Context, remote Remote, whose datapath.Member, q *query) (RemoteAnswer, error) {
	id, index := whose.ID, whose.Index
	key := remoteKey{id, q.name, q.Qtype}
	for {
		m.mu.Lock()
		f := m.asked[key]
		if f == nil {
			f = &remoteFlight{landed: make(chan struct{})}
			if m.asked == nil {
				m.asked = make(map[remoteKey]*remoteFlight)
			}
			m.asked[key] = f
			m.mu.Unlock()
			if m.places.enterWhenFree(ctx, index) {
				f.answer, f.err = remote.QueryDNS(ctx, id, q.Name, q.typeName())
				m.places.leave(index)
			} else {
				f.err = ctx.Err()
			}
			f.left = f.err != nil && ctx.Err() != nil
			m.mu.Lock()
			delete(m.asked, key)
			m.mu.Unlock()
			close(f.landed)
			return f.answer, f.err
		}
		m.mu.Unlock()
		select {
		case <-f.landed:
			if !f.left {
				return f.answer, f.err
			}
		case <-ctx.Done():
			return RemoteAnswer{}, ctx.Err()
		}
	}
}
