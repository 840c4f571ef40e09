// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// TestDomainRuleTakenAway cuts what only it taught, open connections as well, and nothing else.
func TestDomainRuleTakenAway(t *testing.T) {
	zone := testenv.Zone{Records: []string{
		"one.example. 60 IN A 203.0.113.1", "one.example. 60 IN AAAA 2001:db8:200::1",
		"two.example. 60 IN A 203.0.113.2",
		"shared-a.example. 60 IN A 203.0.113.3", "shared-b.example. 60 IN A 203.0.113.3",
	}}
	s := newNamed(t, testenv.VethDevice, zone)
	before := allowing("one.example", "two.example", "shared-a.example", "shared-b.example")
	s.Policy(t, "names.yaml", before)
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		s.Policy(t, "names.yaml", before)
		s.domainsInForce(t, id, 4, 0)
		resolveAll := func() {
			t.Helper()
			s.resolves(t, p, "one.example", "203.0.113.1")
			s.look(t, p, testenv.Lookup{Name: "one.example", IPv6: true})
			s.resolves(t, p, "two.example", "203.0.113.2")
			s.resolves(t, p, "shared-a.example", "203.0.113.3")
			s.resolves(t, p, "shared-b.example", "203.0.113.3")
		}
		resolveAll()
		open := func(addr string) *testenv.Conn {
			t.Helper()
			conn := p.Connect(t, netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort))
			if !conn.Echoes(t, testenv.Patience) {
				t.Fatalf("connection to %s: no echo", addr)
			}
			return conn
		}
		one, one6, two, shared := open("203.0.113.1"), open("2001:db8:200::1"), open("203.0.113.2"), open("203.0.113.3")
		cut := func(when string, conn *testenv.Conn, addr string) {
			t.Helper()
			s.settle(t, p.Workload)
			sent := matches(testenv.Probe{Kind: testenv.TCP, To: netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort)})
			before := s.Arrived.Sum(t, sent).Count
			if conn.Echoes(t, 50*time.Millisecond) {
				t.Errorf("%s: the connection to %s goes on", when, addr)
			}
			s.settle(t, p.Workload)
			if n := s.Arrived.Sum(t, sent).Count - before; n != 0 {
				t.Errorf("%s: %d packets to %s arrived", when, n, addr)
			}
			s.reaches(t, p, false, addr)
		}
		goesOn := func(when string, conn *testenv.Conn, addr string) {
			t.Helper()
			if !conn.Echoes(t, testenv.Patience) {
				t.Errorf("%s: the connection to %s: no echo", when, addr)
			}
			s.reaches(t, p, true, addr)
		}

		s.Policy(t, "names.yaml", allowing("two.example", "shared-b.example"))
		s.domainsInForce(t, id, 2, 0)
		cut("rule gone", one, "203.0.113.1")
		cut("rule gone", one6, "2001:db8:200::1")
		goesOn("rule of another", two, "203.0.113.2")
		goesOn("one of two names", shared, "203.0.113.3")

		s.Policy(t, "names.yaml", allowing("two.example"))
		s.domainsInForce(t, id, 1, 0)
		cut("both of two names", shared, "203.0.113.3")
		goesOn("rule of another", two, "203.0.113.2")

		// Denied by a rule that says more.
		s.Policy(t, "names.yaml", allowing("*.example", "two.example")+"  deny: [two.example]\n")
		s.domainsInForce(t, id, 2, 1)
		cut("name denied", two, "203.0.113.2")
		if a := s.dig(t, p, "two.example"); a.Status != "NXDOMAIN" {
			t.Errorf("denied: %s", a)
		}

		// Given back, a name has to be asked for again.
		s.Policy(t, "names.yaml", before)
		s.domainsInForce(t, id, 4, 0)
		s.reaches(t, p, false, "203.0.113.1", "203.0.113.2", "203.0.113.3", "2001:db8:200::1")
		if learned := s.learned(t, id); len(learned) != 0 {
			t.Errorf("policy show: %v", learned)
		}
		resolveAll()
		s.reaches(t, p, true, "203.0.113.1", "203.0.113.2", "203.0.113.3", "2001:db8:200::1")

		// Block-all has no names.
		s.Policy(t, "names.yaml", "mode: block-all\n")
		testenv.Eventually(t, "block-all", func() bool { return s.Show(t, id).Policy.Mode.String() == "block-all" })
		for _, addr := range []string{"203.0.113.1", "203.0.113.3", "2001:db8:200::1"} {
			if s.opens(t, p, addr) {
				t.Errorf("block-all: %s is reached", addr)
			}
		}
	})
	s.nobodyElseAsked(t)
}
