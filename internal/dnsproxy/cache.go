// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// longest is how long an answer is kept at most, and longestNegative one that
	// there is none (RFC 2308 section 5).
	longest         = 24 * time.Hour
	longestNegative = 3 * time.Hour
	// staleTTL is what is left of an answer that is over and given for want of
	// another, and for how long no other is looked for (RFC 8767 section 4).
	staleTTL = 30 * time.Second
	// entryBytes is what an answer takes beside itself, about.
	entryBytes = 512
)

// answer is what a server said. It is shared, and not changed.
type answer struct {
	wire []byte // as it came, with the question in lower case
	life time.Duration
	// refusesVersion: it does not know the version of EDNS that it was asked in.
	refusesVersion bool
	// plain is what is left of it for those who ask, if that is simple.
	plain *plain
}

// found is what becomes of a request.
type found struct {
	answer *answer
	age    time.Duration // of the answer
	stale  bool          // it is over, and nobody has another
	failed *failure      // there is no answer
}

// cache keeps answers for as long as they say, and has no question asked twice
// at once. What it keeps is what servers said: it is judged, filtered and learned
// anew for each attachment that asks. Its key has the servers, so that nobody
// gets an answer of a server that its own policy does not ask.
type cache struct {
	limit int // bytes; 0: nothing is kept
	stale time.Duration

	mu      sync.Mutex
	entries map[string]*entry
	flights map[string]*flight
	ring    entry // its next is the entry used last, its previous the one to go first
	bytes   int
	stats   CacheStats
}

type entry struct {
	key            string
	answer         *answer
	since          time.Time
	retry          time.Time // until when it is given though it is over
	next, previous *entry
}

// flight is a question that was asked and not yet answered.
type flight struct {
	key     string
	waiting []func(found)
	room    [1]func(found) // for most
}

// CacheStats tell what the cache was good for.
type CacheStats struct {
	Hits, Misses uint64
	Joined       uint64 // those, neither, that waited for the answer to somebody else's question
	Stale        uint64 // answers that were over, for want of others
	Entries      int
	Bytes        int
}

func newCache(limit int, stale time.Duration) *cache {
	c := &cache{limit: limit, stale: stale, entries: make(map[string]*entry), flights: make(map[string]*flight)}
	c.ring.next, c.ring.previous = &c.ring, &c.ring
	return c
}

// appendKey appends what tells requests apart.
func appendKey(b []byte, servers []netip.AddrPort, r *request) []byte {
	flags := byte(0)
	for i, set := range []bool{r.do, r.cd, r.ad} {
		if set {
			flags |= 1 << i
		}
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint16(b, r.Qtype)
	b = binary.BigEndian.AppendUint16(b, r.Qclass)
	b = append(b, r.Name...)
	for _, s := range servers {
		addr := s.Addr().As16()
		b = append(b, 0)
		b = append(b, addr[:]...)
		b = binary.BigEndian.AppendUint16(b, s.Port())
		b = append(b, s.Addr().Zone()...)
		if s.Addr().Is4() {
			b = append(b, 4)
		}
	}
	return b
}

// get returns what is kept for key. If there is nothing, wait is called as soon as
// there is an answer, and a flight is returned to the first, who has to have it
// asked for, and to call land.
func (c *cache) get(key []byte, now time.Time, wait func(found)) (f found, ok bool, first *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok = c.kept(key, now); ok {
		return f, true, nil
	}
	if under := c.flights[string(key)]; under != nil {
		c.stats.Joined++
		under.waiting = append(under.waiting, wait)
		return found{}, false, nil
	}
	c.stats.Misses++
	first = &flight{key: string(key)}
	first.waiting = append(first.room[:0], wait)
	c.flights[first.key] = first
	return found{}, false, first
}

// kept returns what is kept for key, if anything is. The caller holds c.mu.
func (c *cache) kept(key []byte, now time.Time) (f found, ok bool) {
	e := c.entries[string(key)]
	if e == nil {
		return found{}, false
	}
	f = found{answer: e.answer, age: since(e.since, now)}
	switch {
	case f.age < e.answer.life:
		c.stats.Hits++
	case now.Before(e.retry):
		c.stats.Stale++
		f.stale = true
	default:
		if f.age >= e.answer.life+c.stale {
			c.drop(e)
		}
		return found{}, false
	}
	c.use(e)
	return f, true
}

// since is how long ago something was. Sleep of the machine counts, which the
// monotonic clock leaves out, and setting the clock back does not.
func since(then, now time.Time) time.Duration {
	return max(now.Sub(then), now.Round(0).Sub(then.Round(0)), 0)
}

// land hands the answer to a question, or the failure, to all who wait for it.
func (c *cache) land(under *flight, a *answer, failed *failure) {
	now := time.Now()
	f := found{answer: a, failed: failed}
	c.mu.Lock()
	delete(c.flights, under.key)
	switch e := c.entries[under.key]; {
	case f.answer != nil:
		if e != nil {
			c.drop(e)
		}
		c.keep(under.key, f.answer, now)
	case e != nil && since(e.since, now) < e.answer.life+c.stale:
		e.retry = now.Add(staleTTL)
		c.stats.Stale += uint64(len(under.waiting))
		f = found{answer: e.answer, age: since(e.since, now), stale: true}
	}
	c.mu.Unlock()
	for _, wait := range under.waiting {
		wait(f)
	}
}

func (e *entry) size() int {
	n := 2*len(e.key) + len(e.answer.wire) + entryBytes
	if p := e.answer.plain; p != nil {
		n += len(p.msg) + 8*len(p.ttls) + 24*len(p.addrs) + 32*len(p.aliases)
	}
	return n
}

// keep has an answer, and makes room for it. The caller holds c.mu.
func (c *cache) keep(key string, a *answer, now time.Time) {
	if a.life <= 0 || c.limit == 0 {
		return
	}
	e := &entry{key: key, answer: a, since: now}
	if e.size() > c.limit/8 {
		return
	}
	c.entries[key] = e
	c.bytes += e.size()
	c.front(e)
	for c.bytes > c.limit {
		c.drop(c.ring.previous)
	}
}

func (c *cache) front(e *entry) {
	e.next, e.previous = c.ring.next, &c.ring
	e.next.previous, e.previous.next = e, e
}

func (c *cache) use(e *entry) {
	e.next.previous, e.previous.next = e.previous, e.next
	c.front(e)
}

func (c *cache) drop(e *entry) {
	e.next.previous, e.previous.next = e.previous, e.next
	delete(c.entries, e.key)
	c.bytes -= e.size()
}

func (c *cache) counts() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries, s.Bytes = len(c.entries), c.bytes
	return s
}

// lifeOf is how long an answer may be kept: by the least TTL of what it answers
// (RFC 2181 section 5.2), or if it says that there is nothing, by its SOA (RFC
// 2308 section 5). 0: not at all.
func lifeOf(m *dns.Msg) time.Duration {
	if len(m.Question) != 1 || m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	ttl, positive := uint32(maxTTL), false
	for _, rr := range m.Answer {
		h := rr.Header()
		ttl = min(ttl, validTTL(h.Ttl))
		positive = positive || h.Rrtype == m.Question[0].Qtype
	}
	if positive && m.Rcode == dns.RcodeSuccess {
		return min(time.Duration(ttl)*time.Second, longest)
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(time.Duration(min(ttl, validTTL(soa.Hdr.Ttl), soa.Minttl))*time.Second, longestNegative)
		}
	}
	return 0
}
