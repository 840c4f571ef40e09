// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"strings"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/policy"
)

// negativeTTL is how long a refusal may be cached: a rule that is added is
// felt soon.
const negativeTTL = 5

// canary is asked by browsers that would otherwise resolve by HTTPS on their
// own; that it does not exist tells them not to.
const canary = "use-application-dns.net"

// discovery is where clients ask a resolver for its encrypted service (RFC
// 9462), which would take their queries past this server.
const discovery = "resolver.arpa"

// within reports whether name is zone or below it; both canonical.
func within(name, zone string) bool {
	if zone == "" {
		return true
	}
	rest, ok := strings.CutSuffix(name, zone)
	return ok && (rest == "" || strings.HasSuffix(rest, "."))
}

// refuse answers a query that rules forbid. NXDOMAIN keeps the search lists of
// stub resolvers going where REFUSED ends them.
func (s *Server) refuse(q *query, code policy.RefuseCode, why string) []byte {
	if code == policy.RefuseDefault {
		code = s.RefuseWith
	}
	e := extra{dns.ExtendedErrorCodeBlocked, "blocked by netfence: " + why}
	if code == policy.RefuseRefused {
		return q.pack(q.reply(dns.RcodeRefused), e)
	}
	return q.negative(dns.RcodeNameError, e)
}

// negative answers that there is nothing, for negativeTTL.
func (q *query) negative(rcode int, extras ...extra) []byte {
	m := q.reply(rcode)
	m.Ns = []dns.RR{q.soa()}
	return q.pack(m, extras...)
}

// soa is a start of authority of our own, by which resolvers know how long to
// believe a negative answer (RFC 2308). It stands at the parent, for at the
// name itself it would contradict an NXDOMAIN.
func (q *query) soa() *dns.SOA {
	owner := "."
	if i, end := dns.NextLabel(q.Name, 0); !end {
		owner = q.Name[i:]
	}
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns:  "netfence.invalid.", Mbox: "nobody.invalid.",
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}
}

// fail answers that no answer could be had.
func (q *query) fail(extras ...extra) []byte {
	return q.pack(q.reply(dns.RcodeServerFailure), extras...)
}

// minimalAny is the answer to ANY (RFC 8482 section 4.2): such a query is for
// debugging or for amplification, and what it returned could not be learned.
func (q *query) minimalAny() []byte {
	m := q.reply(dns.RcodeSuccess)
	m.Answer = []dns.RR{&dns.HINFO{
		Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: negativeTTL},
		Cpu: "RFC8482",
	}}
	return q.pack(m)
}
