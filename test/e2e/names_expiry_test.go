// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// What a learned address has to live here: the TTL of the answer, clamped, and the grace.
const (
	shortTTL   = 3 * time.Second
	shortGrace = 3 * time.Second
)

var shortLives = []string{"NETFENCE_DNS_MIN_TTL=3s", "NETFENCE_DNS_MAX_TTL=3s", "NETFENCE_DNS_GRACE=3s"}

// expires waits until no new connection of the place to the address comes about, and shows that this is when what was
// learned between asked and answered ends.
func (s *named) expires(t *testing.T, p place, addr string, asked, answered time.Time) {
	t.Helper()
	var last, refused time.Time
	testenv.Eventually(t, addr+" expired", func() bool {
		tried := time.Now()
		if s.opens(t, p, addr) {
			last = tried
			return false
		}
		refused = time.Now()
		return true
	})
	// The clock of the kernel's timers is coarse: a jiffy is up to 10 ms.
	const tick = 20 * time.Millisecond
	if early := refused.Sub(asked); early < shortTTL+shortGrace-tick {
		t.Errorf("%s: refused after %s, want not before %s", addr, early, shortTTL+shortGrace)
	}
	if late := last.Sub(answered); late > shortTTL+shortGrace+tick {
		t.Errorf("%s: still passed after %s, want no longer than %s", addr, late, shortTTL+shortGrace)
	}
}

// TestExpiry: a learned address ends by itself, connections that were opened before do not, and asking again gives it
// back. The kernel does it: it makes no difference whether the daemon lives.
func TestExpiry(t *testing.T) {
	zone := testenv.Zone{Records: []string{"*.short.example. 3600 IN A 203.0.113.1", "*.short.example. 3600 IN AAAA 2001:db8:200::1"}}
	s := newNamed(t, testenv.VethDevice, zone, shortLives...)
	s.Policy(t, "names.yaml", allowing("*.short.example"))
	s.Start(t)
	for _, p := range []place{s.inside, s.job} {
		id := s.attach(t, p)
		for _, test := range []struct {
			name, addr string
			ipv6, kill bool
		}{
			{"a.short.example", "203.0.113.1", false, false},
			{"b.short.example", "2001:db8:200::1", true, true},
		} {
			asked := time.Now()
			a := s.look(t, p, testenv.Lookup{Name: test.name, IPv6: test.ipv6})
			answered := time.Now()
			if !sameAddrs(a.Addrs, test.addr) {
				t.Fatalf("%s: %s", test.name, a)
			}
			// At a port of its own: what it still acknowledges is not what is looked for below.
			conn := p.Connect(t, netip.AddrPortFrom(netip.MustParseAddr(test.addr), otherPort))
			if learned := s.learned(t, id); len(learned[test.addr]) == 0 {
				t.Errorf("policy show: %v", learned)
			}
			if test.kill {
				s.Kill(t)
			}
			s.expires(t, p, test.addr, asked, answered)
			if !conn.Echoes(t, testenv.Patience) {
				t.Errorf("the connection that was open before: no echo")
			}
			s.reaches(t, p, false, test.addr)
			if test.kill {
				s.restart(t, p)
			}
			s.reaches(t, p, false, test.addr)
			if learned := s.learned(t, id); len(learned[test.addr]) != 0 {
				t.Errorf("policy show after its time: %v", learned)
			}
			if !conn.Echoes(t, testenv.Patience) {
				t.Errorf("the connection that was open before, after a restart: no echo")
			}
			s.look(t, p, testenv.Lookup{Name: test.name, IPv6: test.ipv6})
			s.reaches(t, p, true, test.addr)
		}
	}
	s.nobodyElseAsked(t)
}

// TestLearnedAcrossRestarts: stop, kill -9 and start make no difference to what was learned, nor to when it ends.
func TestLearnedAcrossRestarts(t *testing.T) {
	zone := testenv.Zone{Records: []string{"long.example. 60 IN A 203.0.113.1", "short.example. 1 IN A 203.0.113.2", "later.example. 60 IN A 203.0.113.3"}}
	s := newNamed(t, testenv.VethDevice, zone, "NETFENCE_DNS_MIN_TTL=1s", "NETFENCE_DNS_GRACE=2s")
	s.Policy(t, "names.yaml", allowing("long.example", "short.example", "later.example"))
	s.Start(t)
	places := map[string]place{s.attach(t, s.inside): s.inside, s.attach(t, s.job): s.job}
	conns := map[string]*testenv.Conn{}
	for id, p := range places {
		s.resolves(t, p, "long.example", "203.0.113.1")
		s.resolves(t, p, "short.example", "203.0.113.2")
		conns[id] = p.Connect(t, netip.MustParseAddrPort("203.0.113.1:7"))
	}
	holds := func(when string) {
		t.Helper()
		for id, p := range places {
			s.reaches(t, p, true, "203.0.113.1")
			if !conns[id].Echoes(t, testenv.Patience) {
				t.Errorf("%s: %s: the open connection: no echo", when, p.name)
			}
		}
	}
	shows := func(when string) {
		t.Helper()
		for id, p := range places {
			if names := s.learned(t, id)["203.0.113.1"]; len(names) != 1 || names[0] != "long.example" {
				t.Errorf("%s: %s: policy show: %v", when, p.name, s.learned(t, id))
			}
		}
	}
	shows("at first")
	s.Stop(t)
	holds("stopped")
	s.Start(t)
	holds("started")
	shows("started")
	s.Kill(t)
	holds("killed")
	for _, p := range places {
		testenv.Eventually(t, "short.example expired", func() bool { return !s.opens(t, p, "203.0.113.2") })
	}
	s.restart(t, s.inside, s.job)
	holds("started again")
	shows("started again")
	for id, p := range places {
		s.reaches(t, p, false, "203.0.113.2")
		s.resolves(t, p, "later.example", "203.0.113.3")
		s.reaches(t, p, true, "203.0.113.3")
		if names := s.learned(t, id)["203.0.113.2"]; len(names) != 0 {
			t.Errorf("%s: policy show lists what has ended, by %v", p.name, names)
		}
	}

	// What was learned by a daemon that is dead is cut by the next one, too.
	s.Stop(t)
	s.Policy(t, "names.yaml", allowing("later.example"))
	s.restart(t, s.inside, s.job)
	for id, p := range places {
		s.domainsInForce(t, id, 1, 0)
		s.reaches(t, p, false, "203.0.113.1")
		s.reaches(t, p, true, "203.0.113.3")
		if conns[id].Echoes(t, 50*time.Millisecond) {
			t.Errorf("%s: the connection goes on without its rule", p.name)
		}
	}
	s.nobodyElseAsked(t)
}
