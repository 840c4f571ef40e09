// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// asked is the answer of some servers, kept for when the query is decided anew.
type asked struct {
	servers []netip.AddrPort // whom it is from
	found
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
		cd:    q.cd && len(r.voices) == 0,
		index: q.peer.Index,
	}
}

// lookup finds the answer to a request, in the cache or by asking. Where it is not
// there at once, done is called with it, once, perhaps before lookup returns.
//
// A question that is in flight is not asked again: whoever wants to know as well
// waits for the answer. The time it may take is that of who asked first, which
// ends before that of the others; when it ends without an answer they ask again.
func (s *Server) lookup(servers []netip.AddrPort, r *request, deadline time.Time, done func(found)) (f found, ok bool) {
	var room [512]byte
	key := appendKey(room[:0], servers, r)
	f, ok, under := s.cache.get(key, time.Now(), func(f found) {
		if f.failed != nil && f.failed.timeout && time.Until(deadline) > s.TryTimeout/4 {
			if f, ok := s.lookup(servers, r, deadline, done); ok {
				done(f)
			}
			return
		}
		done(f)
	})
	if under != nil {
		s.ask(servers, r, deadline, func(a *answer, failed *failure) { s.cache.land(under, a, failed) })
	}
	return f, ok
}

// newAnswer reads a message that a server sent, which becomes the answer's; nil: it is none.
func newAnswer(wire []byte) *answer {
	if p := digest(wire); p != nil {
		return &answer{wire: wire, plain: p, life: time.Duration(p.life) * time.Second}
	}
	m, err := unpack(wire)
	if err != nil {
		return nil
	}
	return &answer{wire: wire, life: lifeOf(m), refusesVersion: m.Rcode == dns.RcodeBadVers}
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
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok { // how long there is nothing (RFC 2308 section 3), where a server says more
			soa.Hdr.Ttl = min(validTTL(soa.Hdr.Ttl), soa.Minttl)
		}
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
