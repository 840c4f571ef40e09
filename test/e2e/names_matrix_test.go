// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

var matrixPrefixes = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/25"), netip.MustParsePrefix("2001:db8:200::/64")}

// TestTransparentNames is every kind of target, every address that a workload may take for its resolver, and every
// resolver that it may use, none of which know of Netfence: each gets its answer, from whom it asked, and may go where
// the answer points. Nobody but the daemon's upstream hears of it, not even while the daemon is dead.
func TestTransparentNames(t *testing.T) {
	for _, test := range []struct {
		name    string
		device  testenv.Device
		cgroup  bool
		servers []string
	}{
		{"routed veth", testenv.VethDevice, false, []string{public, public6, gateway, gateway6}},
		{"bridge port", testenv.BridgePort, false, []string{public, public6, gateway, gateway6}},
		{"tap", testenv.TapDevice, false, []string{public, public6, gateway, gateway6}},
		{"tun", testenv.TunDevice, false, []string{public, public6}},
		{"cgroup", testenv.VethDevice, true, []string{public, public6, gateway, gateway6, localStub}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			zone := testenv.Zone{Numbered: map[string][]netip.Prefix{"matrix.example.": matrixPrefixes}}
			s := newNamed(t, test.device, zone)
			p := s.inside
			if test.cgroup {
				p = s.job
			}
			// Without the filter they ask whom they mean to: the observers see what there is to see.
			if a := s.dig(t, p, "n0.matrix.example"); !sameAddrs(a.Addrs, giveaway) || s.Others[0].Asked(nil) != 1 {
				t.Fatalf("without the filter: %s", a)
			}
			before := s.Arrived.Sum(t, testenv.ToPort53).Count
			s.Policy(t, "names.yaml", allowing("*.matrix.example"))
			s.Start(t)
			id := s.attach(t, p)

			lookups := matrix(test.servers)
			answers := s.lookAll(t, p, lookups)
			var addrs []string
			for i, l := range lookups {
				addrs = append(addrs, s.checkAnswer(t, l, answers[i], i+1))
			}
			s.reaches(t, p, true, addrs...)
			s.reaches(t, p, false, "203.0.113.200", "2001:db8:200:1::200")

			s.Kill(t)
			few := fewOf(lookups, len(answers)+1, time.Second)
			for i, a := range s.lookAll(t, p, few) {
				if len(a.Addrs) != 0 || few[i].By == testenv.Dig && a.Unknown {
					t.Errorf("without a daemon: %s: %s", few[i], a)
				}
			}
			s.reaches(t, p, true, addrs...)

			s.restart(t, p)
			few = fewOf(lookups, 2*len(answers), 0)
			for i, a := range s.lookAll(t, p, few) {
				s.checkAnswer(t, few[i], a, 2*len(answers)+i)
			}
			if n := len(s.learned(t, id)); n < len(lookups) {
				t.Errorf("policy show lists %d learned addresses, want those of %d names", n, len(lookups))
			}
			if n := s.Others[0].Asked(nil) + s.Others[1].Asked(nil); n != 1 {
				t.Errorf("other resolvers were asked %d times, want once, without the filter", n)
			}
			other := func(q testenv.Packet) bool { return testenv.ToPort53(q) && q.Dst != netip.MustParseAddr(upstream) }
			if n := s.Arrived.Sum(t, other).Count; n != before {
				t.Errorf("%d packets to port 53 of others left the host: %v", n-before, s.Arrived.Packets(t))
			}
		})
	}
}

// matrix asks each server by each resolver over each protocol, in turn for addresses of either family: for n1 first.
func matrix(servers []string) []testenv.Lookup {
	var lookups []testenv.Lookup
	for _, server := range servers {
		for _, by := range []testenv.Resolver{testenv.Glibc, testenv.GoResolver, testenv.Dig, testenv.Musl, testenv.Nslookup} {
			for _, overTCP := range []bool{false, true} {
				if overTCP && (by == testenv.Musl || by == testenv.Nslookup) {
					continue
				}
				n := len(lookups) + 1
				lookups = append(lookups, testenv.Lookup{By: by, Server: server, Name: fmt.Sprintf("n%d.matrix.example", n), IPv6: n%2 == 0, TCP: overTCP})
			}
		}
	}
	return lookups
}

// fewOf are those by glibc and dig, for fresh names from the number on.
func fewOf(lookups []testenv.Lookup, number int, wait time.Duration) []testenv.Lookup {
	var few []testenv.Lookup
	for _, l := range lookups {
		if l.By == testenv.Glibc || l.By == testenv.Dig {
			n := number + len(few)
			l.Name, l.IPv6, l.Wait = fmt.Sprintf("n%d.matrix.example", n), n%2 == 0, wait
			few = append(few, l)
		}
	}
	return few
}

// checkAnswer shows that the answer is the upstream's, and comes from whom was asked. It returns the address.
func (s *named) checkAnswer(t *testing.T, l testenv.Lookup, a testenv.Answer, number int) string {
	t.Helper()
	want := s.checkNumbered(t, l, a, number)
	if l.By == testenv.Dig && !strings.Contains(a.Text, fmt.Sprintf("SERVER: %s#53", l.Server)) || strings.Contains(a.Text, "unexpected source") {
		t.Errorf("%s: the answer is from another:\n%s", l, a)
	}
	if s.Upstream.AskedFor(l.Name) == 0 {
		t.Errorf("%s: the upstream was not asked", l)
	}
	return want
}

// checkNumbered shows that the answer is the address of a numbered name, and returns it.
func (s *named) checkNumbered(t *testing.T, l testenv.Lookup, a testenv.Answer, number int) string {
	t.Helper()
	prefix := matrixPrefixes[0]
	if l.IPv6 {
		prefix = matrixPrefixes[1]
	}
	want := testenv.NumberedAddr(prefix, number).String()
	if !sameAddrs(a.Addrs, want) {
		t.Errorf("%s: %v, want %s:\n%s", l, a.Addrs, want, a)
	}
	return want
}
