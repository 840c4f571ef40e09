// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/policy"
)

// asked counts what reaches an asker.
func counted(n *int, ask asker) asker {
	return func(servers []netip.AddrPort, r *request, deadline time.Time, done func(*answer, *failure)) {
		*n++
		ask(servers, r, deadline, done)
	}
}

// caching is a server without sockets that keeps answers.
func caching(t testing.TB, ask asker, policies ...policy.Policy) *world {
	w := bare(t, ask, policies...)
	w.cache = newCache(1<<20, 0)
	return w
}

// asks passes a query of an attachment through w.
func (w *world) asks(t testing.TB, index uint32, q *dns.Msg) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(w.handle(context.Background(), packed(t, q), Peer{Index: index}, true)); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestCachedAnswers holds that an answer is kept for as long as it says, counted
// down, and that it is learned each time, for no longer.
func TestCachedAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		w := caching(t, counted(&n, answering(t, dns.RcodeSuccess, "$ 300 CNAME b.example.", "b.example. 400 A 192.0.2.1")), allowlist("*"))
		start := time.Now()
		for _, tt := range []struct {
			at    time.Duration
			n     int
			alias uint32
			ttl   time.Duration
		}{{0, 1, 300, 300}, {time.Second, 1, 299, 299}, {299 * time.Second, 1, 1, 30}, {300 * time.Second, 2, 300, 300}} {
			<-time.After(tt.at - time.Since(start))
			m := w.asks(t, index, questionFor("A.example", dns.TypeA))
			if n != tt.n || len(m.Answer) != 2 || m.Answer[0].Header().Ttl != tt.alias || m.Answer[0].Header().Name != "A.example." {
				t.Errorf("after %v, asked %d times: %v", tt.at, n, m)
			}
			taught := w.kernel.taught()
			if last := taught[len(taught)-1]; last.TTL != tt.ttl*time.Second || !slices.Equal(last.Addrs, addrs("192.0.2.1")) {
				t.Errorf("after %v: taught %+v", tt.at, last)
			}
		}
		if s := w.CacheStats(); s.Hits != 2 || s.Misses != 2 || s.Joined != 0 || s.Entries != 1 || s.Bytes <= 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestCachedForEach holds that an answer is judged, guarded and learned for each
// attachment by its own rules, and that no answer is that of another's servers.
func TestCachedForEach(t *testing.T) {
	n := 0
	w := caching(t, counted(&n, answering(t, dns.RcodeSuccess, "$ 300 A 10.0.0.1", "$ 300 A 192.0.2.1")), allowlist("*"))
	private := allowlist("a.example")
	private.DNS.Allow[0].Private = true
	elsewhere := allowlist("*")
	elsewhere.DNS.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.55:53")}
	w.kernel.set(t, 20, private)
	w.kernel.set(t, 30, allowlist("b.example"))
	w.kernel.set(t, 40, elsewhere)
	q := questionFor("a.example", dns.TypeA)
	for _, tt := range []struct {
		index  uint32
		n      int
		answer []string
	}{{index, 1, []string{"192.0.2.1"}}, {20, 1, []string{"10.0.0.1", "192.0.2.1"}}, {30, 1, []string{}}, {40, 2, []string{"192.0.2.1"}}, {index, 2, []string{"192.0.2.1"}}} {
		if m := w.asks(t, tt.index, q); n != tt.n || !slices.Equal(rdata(m.Answer), tt.answer) {
			t.Errorf("attachment %d, asked %d times: %v", tt.index, n, m)
		}
	}
	for i, change := range []func(q *dns.Msg){
		func(q *dns.Msg) { q.IsEdns0().SetDo(true) },
		func(q *dns.Msg) { q.AuthenticatedData = true },
		func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAAAA },
		func(q *dns.Msg) { q.Question[0].Name = "aa.example." },
	} {
		other := q.Copy()
		change(other)
		w.asks(t, index, other)
		if n != 3+i {
			t.Errorf("change %d: asked %d times", i, n)
		}
	}
	// What the kernel does not take is not answered, kept or not.
	w.kernel.refusing(func() error { return errors.New("no memory") })
	if m := w.asks(t, index, q); m.Rcode != dns.RcodeServerFailure || len(m.Answer) != 0 {
		t.Errorf("answered what was not learned: %v", m)
	}
}

// TestLifeOf is RFC 2181 section 8 and RFC 2308 sections 4 and 5.
func TestLifeOf(t *testing.T) {
	const soa = "example. 3600 SOA ns.example. h.example. 1 2 3 4 60"
	for _, tt := range []struct {
		rcode int
		lines []string
		want  time.Duration
	}{
		{0, []string{"$ 300 A 192.0.2.1", "$ 200 A 192.0.2.2"}, 200 * time.Second},
		{0, []string{"$ 300 A 192.0.2.1", "--", soa}, 300 * time.Second},
		{0, []string{"$ 0 A 192.0.2.1"}, 0},
		{0, []string{"$ 4294967295 A 192.0.2.1"}, 0},
		{0, []string{"$ 2147483647 A 192.0.2.1"}, longest},
		{0, []string{"$ 300 CNAME b.example."}, 0},
		{0, []string{"--", soa}, time.Minute},
		{0, []string{"$ 30 CNAME b.example.", "--", soa}, 30 * time.Second},
		{0, []string{"--", "example. 30 SOA ns.example. h.example. 1 2 3 4 60"}, 30 * time.Second},
		{0, []string{"--", "example. 86400 SOA ns.example. h.example. 1 2 3 4 86400"}, longestNegative},
		{0, []string{"--", "example. 3600 NS ns.example."}, 0},
		{dns.RcodeNameError, []string{"--", soa}, time.Minute},
		{dns.RcodeNameError, nil, 0},
		{dns.RcodeYXDomain, []string{"$ 300 A 192.0.2.1"}, 0},
	} {
		r := &request{Question: dns.Question{Name: "a.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
		answering(t, tt.rcode, tt.lines...)(nil, r, time.Time{}, func(a *answer, _ *failure) {
			if got := a.life; got != tt.want {
				t.Errorf("%d %q: %v, want %v", tt.rcode, tt.lines, got, tt.want)
			}
			a.wire[2] |= 0x2
			if got := newAnswer(a.wire).life; got != 0 {
				t.Errorf("truncated: %v", got)
			}
		})
	}
}

// TestNegativeAnswers holds that it is kept that there is nothing, for as long as the SOA says (RFC 2308 section 5), counted
// down, and that it is told nobody to whom the name is refused.
func TestNegativeAnswers(t *testing.T) {
	for name, rcode := range map[string]int{"no such name": dns.RcodeNameError, "no such data": dns.RcodeSuccess} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			w := caching(t, counted(&n, answering(t, rcode, "--", "example. 3600 SOA ns.example. h.example. 1 2 3 4 60")), allowlist("*"))
			w.kernel.set(t, 20, allowlist("other.example"))
			w.kernel.set(t, 30, allowlist("*"))
			q := questionFor("a.example", dns.TypeA)
			for _, tt := range []struct {
				index uint32
				wait  time.Duration
				n     int
				ttl   uint32
			}{{index, 0, 1, 60}, {index, 20 * time.Second, 1, 40}, {30, 39 * time.Second, 1, 1}, {index, time.Second, 2, 60}} {
				<-time.After(tt.wait)
				m := w.asks(t, tt.index, q)
				if n != tt.n || m.Rcode != rcode || len(m.Answer) != 0 || len(m.Ns) != 1 || m.Ns[0].Header().Ttl > tt.ttl {
					t.Errorf("%s, asked %d times: %v", name, n, m)
				}
				if code, _ := explained(m); code != 0 {
					t.Errorf("%s, refused: %v", name, m)
				}
				m = w.asks(t, 20, q)
				if code, _ := explained(m); code != dns.ExtendedErrorCodeBlocked || m.Rcode != dns.RcodeNameError || n != tt.n {
					t.Errorf("%s, to whom it is refused: %v", name, m)
				}
			}
			if taught := w.kernel.taught(); len(taught) != 0 {
				t.Errorf("taught %+v", taught)
			}
		})
	}
}

// TestCacheIsBounded holds that the cache takes what it may, and gives up what
// was not asked for the longest.
func TestCacheIsBounded(t *testing.T) {
	n := 0
	w := caching(t, counted(&n, answering(t, dns.RcodeSuccess, "$ 300 A 192.0.2.1")), allowlist("*"))
	const limit = 64 << 10
	w.cache = newCache(limit, 0)
	w.asks(t, index, questionFor("kept.example", dns.TypeA))
	for i := range 1000 {
		w.asks(t, index, questionFor(fmt.Sprintf("n%d.example", i), dns.TypeA))
		w.asks(t, index, questionFor("kept.example", dns.TypeA))
		if s := w.CacheStats(); s.Bytes > limit || s.Entries > limit/entryBytes {
			t.Fatalf("%+v", s)
		}
	}
	if n != 1001 || w.CacheStats().Entries < 50 {
		t.Errorf("asked %d times, %+v", n, w.CacheStats())
	}
	w.asks(t, index, questionFor("n0.example", dns.TypeA))
	if n != 1002 {
		t.Error("what was not asked for the longest is kept")
	}
	w.cache = newCache(0, 0)
	w.asks(t, index, questionFor("a.example", dns.TypeA))
	w.asks(t, index, questionFor("a.example", dns.TypeA))
	if s := w.CacheStats(); n != 1004 || s.Entries != 0 || s.Bytes != 0 {
		t.Errorf("a cache of no size: asked %d times, %+v", n, s)
	}
}

// TestJoined holds that a question is in flight once for all who ask it, and that
// one who goes takes nothing from the others.
func TestJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var arrive func()
		n := 0
		w := caching(t, func(servers []netip.AddrPort, r *request, deadline time.Time, done func(*answer, *failure)) {
			n++
			arrive = func() { answering(t, dns.RcodeSuccess, "$ 300 A 192.0.2.1")(servers, r, deadline, done) }
		}, allowlist("*"))
		w.cache = newCache(0, 0)
		w.kernel.set(t, 20, allowlist("*"))
		b := packed(t, questionFor("a.example", dns.TypeA))
		var running sync.WaitGroup
		first, leave := context.WithCancel(t.Context())
		running.Go(func() {
			if reply := w.handle(first, b, Peer{Index: index}, true); reply != nil {
				t.Errorf("who left has %x", reply)
			}
		})
		synctest.Wait()
		for i := range 50 {
			running.Go(func() {
				m := new(dns.Msg)
				if err := m.Unpack(w.handle(t.Context(), b, Peer{Index: []uint32{index, 20}[i%2]}, true)); err != nil || len(m.Answer) != 1 {
					t.Errorf("%v, %v", m, err)
				}
			})
		}
		synctest.Wait()
		leave()
		synctest.Wait()
		arrive()
		running.Wait()
		if s := w.CacheStats(); n != 1 || s.Joined != 50 || len(w.cache.flights) != 0 {
			t.Errorf("asked %d times, %+v", n, s)
		}
	})
}

// TestJoinedLate holds that who joins late has all the time that is its own.
func TestJoinedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		w := caching(t, func(servers []netip.AddrPort, r *request, deadline time.Time, done func(*answer, *failure)) {
			if n++; n == 1 {
				time.AfterFunc(time.Until(deadline), func() { done(nil, &failure{text: "no answer", timeout: true}) })
				return
			}
			time.AfterFunc(time.Second, func() {
				answering(t, dns.RcodeSuccess, "$ 300 A 192.0.2.1")(servers, r, deadline, done)
			})
		}, allowlist("*"))
		b := packed(t, questionFor("a.example", dns.TypeA))
		var running sync.WaitGroup
		for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeSuccess} {
			running.Go(func() {
				start := time.Now()
				m := new(dns.Msg)
				if err := m.Unpack(w.handle(t.Context(), b, Peer{Index: index}, true)); err != nil || m.Rcode != rcode || time.Since(start) > w.Timeout {
					t.Errorf("after %v: %v, %v", time.Since(start), m, err)
				}
			})
			<-time.After(w.Timeout - time.Second)
		}
		running.Wait()
		if n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

// TestServeStale holds that what is over is given only where that was asked for,
// only for want of another, and that it says so.
func TestServeStale(t *testing.T) {
	for _, stale := range []time.Duration{0, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			n, fails := 0, false
			w := caching(t, counted(&n, func(servers []netip.AddrPort, r *request, deadline time.Time, done func(*answer, *failure)) {
				if fails {
					done(nil, &failure{text: "no answer", timeout: true})
					return
				}
				answering(t, dns.RcodeSuccess, "$ 300 A 192.0.2.1")(servers, r, deadline, done)
			}), allowlist("*"))
			w.cache = newCache(1<<20, stale)
			w.Timeout = 10 * time.Millisecond // less than it is worth asking again for
			q := questionFor("a.example", dns.TypeA)
			w.asks(t, index, q)
			fails = true
			<-time.After(301 * time.Second)
			for range 3 {
				m := w.asks(t, index, q)
				code, _ := explained(m)
				if given := len(m.Answer) == 1; given != (stale > 0) || given && (m.Answer[0].Header().Ttl != 30 || code != dns.ExtendedErrorCodeStaleAnswer) {
					t.Errorf("stale for %v: %v", stale, m)
				}
			}
			if want := map[time.Duration]int{0: 4, time.Hour: 2}[stale]; n != want {
				t.Errorf("stale for %v: asked %d times", stale, n)
			}
			<-time.After(time.Hour)
			if m := w.asks(t, index, q); m.Rcode != dns.RcodeServerFailure {
				t.Errorf("long over: %v", m)
			}
			fails = false
			if m := w.asks(t, index, q); len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 300 {
				t.Errorf("a new one: %v", m)
			}
		})
	}
}
