// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// burstPrefixes hold the addresses of the names that are resolved, of either family.
var burstPrefixes = []netip.Prefix{netip.MustParsePrefix("77.0.0.0/12"), netip.MustParsePrefix("2001:db8:200::/64")}

// TestResolveThenSend: who sends in the instant in which the answer is there loses nothing. The kernel holds the address
// before the client does; an answer first would lose a fifth.
func TestResolveThenSend(t *testing.T) {
	s := newBurst(t)
	s.both(t, func(t *testing.T, p place, _ string) { s.resolveThenSend(t, p, rounds(5_000, 125_000)) })
	s.nobodyElseAsked(t)
}

// BenchmarkResolveThenSend is that test with 500,000 names.
func BenchmarkResolveThenSend(b *testing.B) {
	const each = 125_000
	for b.Loop() {
		s := newBurst(b)
		resolved, lost := 0, 0
		for _, p := range []place{s.inside, s.job} {
			s.attach(b, p)
			r, l := s.resolveThenSend(b, p, each)
			resolved, lost = resolved+r, lost+l
		}
		s.nobodyElseAsked(b)
		b.ReportMetric(float64(resolved), "iterations")
		b.ReportMetric(float64(lost), "dropped")
		fmt.Printf("%d of %d datagrams did not arrive that were sent in the instant after the answer\n", lost, resolved)
	}
	b.ReportMetric(0, "ns/op")
}

// newBurst is a scene with a daemon that has room for many names at a time.
func newBurst(t testing.TB) *named {
	t.Helper()
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Numbered: map[string][]netip.Prefix{"burst.example.": burstPrefixes}},
		"NETFENCE_LIMITS_LEARNED=65536", "NETFENCE_LIMITS_NAMES=65536",
		"NETFENCE_DNS_MIN_TTL=1s", "NETFENCE_DNS_MAX_TTL=5s", "NETFENCE_DNS_GRACE=5s")
	s.Outside.Own(t, burstPrefixes[0])
	s.Policy(t, "names.yaml", allowing("*.burst.example"))
	s.Start(t)
	return s
}

// resolveThenSend resolves as many names over each family, and tells how many datagrams were sent and did not arrive.
func (s *named) resolveThenSend(t testing.TB, p place, each int) (resolved, lost int) {
	t.Helper()
	const datagrams = 9
	for i, server := range []string{public, public6} {
		to := func(packet testenv.Packet) bool {
			return packet.Port == datagrams && packet.Protocol == unix.IPPROTO_UDP && burstPrefixes[i].Contains(packet.Dst)
		}
		before := s.Arrived.Packets(t)
		r := testenv.Burst{Server: netip.AddrPortFrom(netip.MustParseAddr(server), 53), Zone: "burst.example.", IPv6: i == 1,
			Count: each, UDP: datagrams, TCP: echoPort, TCPEach: 20}.Run(t, p.ns, p.cg)
		t.Logf("%d names resolved in %s, the slowest in %s", each, r.Elapsed, r.Slowest)
		if r.First != "" || len(r.Addrs) != each {
			t.Errorf("%d answers, %d without, %d without address, %d sends and %d connects refused; first: %s",
				len(r.Addrs), r.Unanswered, r.Failed, r.Refused, r.Unconnected, r.First)
		}
		s.settle(t, p.Workload)
		after := s.Arrived.Packets(t)
		src := s.Addr4
		if i == 1 {
			src = s.Addr6
		}
		if p.cg != nil {
			src = hostAddrs[i]
		}
		missing := 0
		for n, addr := range r.Addrs {
			if addr != testenv.NumberedAddr(burstPrefixes[i], n) {
				t.Fatalf("name %d resolved to %s", n, addr)
			}
			packet := testenv.Packet{Src: src, Dst: addr, Protocol: unix.IPPROTO_UDP, Port: datagrams}
			if after[packet].Count-before[packet].Count != 1 {
				missing++
			}
		}
		if missing != 0 {
			t.Errorf("%d of %d datagrams did not arrive", missing, each)
		}
		resolved, lost = resolved+len(r.Addrs), lost+missing
		// What nobody resolved is as closed as ever.
		forbidden := testenv.NumberedAddr(burstPrefixes[i], each+1)
		s.reaches(t, p, false, forbidden.String())
		if seen := s.Arrived.Sum(t, to).Count; seen == 0 {
			t.Error("the observer sees none of it")
		}
	}
	return resolved, lost
}
