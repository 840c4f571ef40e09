// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datapath"
)

// asked is the answer of some servers, kept for when the query is decided anew.
type asked struct {
	servers []netip.AddrPort // whom it is from
	found
}

// find has the answer of the cache or an upstream in known.
func (s *Server) find(ctx context.Context, q *query, r *ruling, chain []datapath.Member, known *asked) *failure {
	servers, err := s.servers(q, r, chain)
	if err != nil {
		return &failure{code: dns.ExtendedErrorCodeOther, text: err.Error()}
	}
	if known.answer == nil || !slices.Equal(known.servers, servers) {
		f := s.wait(ctx, servers, q.request(r), q.deadline)
		if f.failed != nil {
			return f.failed
		}
		*known = asked{servers, f}
	}
	return nil
}

// message is what was found. It is the caller's to change.
func (known *asked) message() (*dns.Msg, *failure) {
	m, err := unpack(known.answer.wire)
	if err != nil {
		return nil, &failure{code: dns.ExtendedErrorCodeInvalidData, text: "the upstream's answer does not parse"}
	}
	known.count(m)
	return m, nil
}

// request is what servers are asked for a query.
func (q *query) request(r *ruling) *request {
	return &request{
		Question: dns.Question{Name: strings.ToLower(q.Name), Qtype: q.Qtype, Qclass: q.Qclass},
		do:       q.do, ad: q.ad,
		// What opens the filter is checked whether or not the client wants it.
		cd: q.cd && len(r.voices) == 0,
	}
}

// wait is lookup for those who can wait.
func (s *Server) wait(ctx context.Context, servers []netip.AddrPort, r *request, deadline time.Time) found {
	var room [512]byte
	if f, ok := s.cache.kept(appendKey(room[:0], servers, r), time.Now()); ok {
		return f
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	done := make(chan found, 1)
	s.lookup(servers, r, deadline, func(f found) { done <- f })
	select {
	case f := <-done:
		return f
	case <-ctx.Done():
		return found{failed: &failure{code: dns.ExtendedErrorCodeNoReachableAuthority, text: "upstream: " + errTimeout.Error(), timeout: true}}
	}
}

// lookup finds the answer to a request, in the cache or by asking, and calls done
// once, perhaps before it returns.
//
// A question that is in flight is not asked again: whoever wants to know as well
// waits for the answer. The time it may take is that of who asked first, which
// ends before that of the others; when it ends without an answer they ask again.
func (s *Server) lookup(servers []netip.AddrPort, r *request, deadline time.Time, done func(found)) {
	var room [512]byte
	key := appendKey(room[:0], servers, r)
	now := time.Now()
	f, ok, first := s.cache.get(key, now, func(f found) {
		if f.failed != nil && f.failed.timeout && time.Until(deadline) > s.TryTimeout/4 {
			s.lookup(servers, r, deadline, done)
			return
		}
		done(f)
	})
	switch {
	case ok:
		done(f)
	case first:
		key = slices.Clone(key)
		s.ask(servers, r, deadline, func(wire []byte, failed *failure) { s.cache.land(key, wire, failed) })
	}
}

// newAnswer reads a message that a server sent.
func newAnswer(wire []byte) *answer {
	a := &answer{wire: wire, plain: digest(wire)}
	if a.plain != nil {
		a.life = time.Duration(a.plain.life) * time.Second
	} else if m, err := unpack(wire); err == nil {
		a.life = lifeOf(m)
	}
	return a
}

// count takes from the TTLs of an answer what has passed of them. What is over
// has a little left, and says so.
func (f *found) count(m *dns.Msg) {
	if f.stale {
		opt := m.IsEdns0()
		if opt == nil {
			opt = &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
			m.Extra = append(m.Extra, opt)
		}
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeStaleAnswer, ExtraText: "no server answers, this is what one said before"})
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			if h.Rrtype != dns.TypeOPT { // which has none
				h.Ttl = f.left(validTTL(h.Ttl))
			}
		}
	}
}

// left is what is left of a TTL.
func (f *found) left(ttl uint32) uint32 {
	if f.stale {
		return min(ttl, seconds(staleTTL))
	}
	return ttl - min(seconds(f.age), ttl)
}
