// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netfence/netfence/internal/testenv"
)

// Whom the daemon asks, and whom workloads do.
const (
	upstream  = "198.51.100.53"
	public    = testenv.ForeignResolver4
	public6   = testenv.ForeignResolver6
	gateway   = "10.77.0.1"
	gateway6  = "fd77::1"
	localStub = "127.0.0.53"
)

// named is a scene with names. Whoever reaches a resolver other than the upstream is told giveaway for every name.
type named struct {
	*scene
	Upstream *testenv.Nameserver
	Others   []*testenv.Nameserver // at the other addresses above
	inside   place
	job      place
}

// place is where a workload is, and what to call it.
type place struct {
	*testenv.Workload
	name   string
	ns     *testenv.NS
	cg     *testenv.Cgroup
	target []string // to attach
}

const giveaway = "203.0.113.250"

var giveawayZone = testenv.Zone{Records: []string{
	"*.example. 60 IN A " + giveaway, "*.example. 60 IN AAAA 2001:db8:200::fa", "example. 60 IN A " + giveaway,
}}

// newNamed prepares everything but does not start the daemon; env is the daemon's.
func newNamed(t testing.TB, device testenv.Device, z testenv.Zone, env ...string) *named {
	t.Helper()
	s := newUnserved(t, device, env...)
	s.Upstream = testenv.ServeDNS(t, s.Outside, z, upstream)
	return s
}

// newUnserved is newNamed where nobody answers at the upstream's address yet.
func newUnserved(t testing.TB, device testenv.Device, env ...string) *named {
	t.Helper()
	s := newScene(t, device, append([]string{"NETFENCE_DNS_UPSTREAM=" + upstream}, env...)...)
	n := &named{
		scene: s,
		Others: []*testenv.Nameserver{
			testenv.ServeDNS(t, s.Outside, giveawayZone, public, public6),
			testenv.ServeDNS(t, s.Host, giveawayZone, gateway, gateway6, localStub),
		},
	}
	n.inside = place{s.Inside, "interface", s.Workload, nil, []string{"--interface", s.Link}}
	n.job = n.newJob(t, testenv.NewCgroup(t), "cgroup")
	return n
}

// newJob starts a workload beside the daemon.
func (s *named) newJob(t testing.TB, cg *testenv.Cgroup, name string) place {
	t.Helper()
	return place{testenv.StartWorkload(t, s.Host, cg), name, s.Host, cg, []string{"--cgroup", cg.Path}}
}

// attach attaches the place.
func (s *named) attach(t testing.TB, p place, args ...string) string {
	t.Helper()
	return s.Attach(t, append(slices.Clone(p.target), args...)...)
}

// both calls f for a workload behind the device and for one in a cgroup, attached beside each other.
func (s *named) both(t *testing.T, f func(t *testing.T, p place, id string)) {
	t.Helper()
	for _, p := range []place{s.inside, s.job} {
		id := s.attach(t, p)
		t.Run(p.name, func(t *testing.T) { f(t, p, id) })
	}
}

// allowing is a policy that allows the names, and what settle needs.
func allowing(names ...string) string {
	return fmt.Sprintf("mode: allowlist\nallow: [%s]\ndns:\n  allow: [%s]\n", alwaysAllowed, quoted(names))
}

func quoted(names []string) string {
	var q []string
	for _, name := range names {
		q = append(q, fmt.Sprintf("%q", name))
	}
	return strings.Join(q, ", ")
}

// dig asks for the A records of a name.
func (s *named) dig(t testing.TB, p place, name string) testenv.Answer {
	t.Helper()
	return s.look(t, p, testenv.Lookup{Name: name})
}

// look asks dig, and the public resolver, unless the lookup says otherwise.
func (s *named) look(t testing.TB, p place, l testenv.Lookup) testenv.Answer {
	t.Helper()
	if l.By == "" {
		l.By = testenv.Dig
	}
	if l.Server == "" {
		l.Server = public
	}
	return testenv.MustResolve(t, p.ns, p.cg, l)
}

// resolves shows that the name has exactly the addresses for the place.
func (s *named) resolves(t testing.TB, p place, name string, addrs ...string) {
	t.Helper()
	if a := s.dig(t, p, name); !sameAddrs(a.Addrs, addrs...) {
		t.Fatalf("%s: %s is %v, want %v:\n%s", p.name, name, a.Addrs, addrs, a)
	}
}

func sameAddrs(got []netip.Addr, want ...string) bool {
	var texts []string
	for _, addr := range got {
		texts = append(texts, addr.String())
	}
	slices.Sort(texts)
	want = slices.Clone(want)
	slices.Sort(want)
	return slices.Equal(texts, want)
}

// restart starts the daemon again and waits until it answers for the place, which may be a moment after it is ready.
func (s *named) restart(t testing.TB, places ...place) {
	t.Helper()
	s.Start(t)
	for _, p := range places {
		testenv.Eventually(t, "answers for the "+p.name, func() bool {
			return s.dig(t, p, "nobody.has.this.example").Status != "SERVFAIL"
		})
	}
}

// lookAll asks everything, a few at a time, and returns the answers in order.
func (s *named) lookAll(t testing.TB, p place, lookups []testenv.Lookup) []testenv.Answer {
	t.Helper()
	answers := make([]testenv.Answer, len(lookups))
	var group errgroup.Group
	group.SetLimit(8)
	for i, l := range lookups {
		group.Go(func() (err error) {
			answers[i], err = testenv.Resolve(t, p.ns, p.cg, l)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	return answers
}

// to are rows that try the addresses by TCP and UDP.
func to(pass bool, addrs ...string) []row {
	var rows []row
	for _, addr := range addrs {
		rows = append(rows, row{"address of a name", netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort).String(), tcpUDP, false, pass})
	}
	return rows
}

// reaches shows that the place can send to the addresses, or that it can not.
func (s *named) reaches(t testing.TB, p place, pass bool, addrs ...string) {
	t.Helper()
	s.check(t, p.Workload, to(pass, addrs...), nil)
}

// nobodyElseAsked shows that no query went anywhere but from the daemon to its upstream.
func (s *named) nobodyElseAsked(t testing.TB) {
	t.Helper()
	for _, other := range s.Others {
		if n := other.Asked(nil); n != 0 {
			t.Errorf("another resolver was asked %d times", n)
		}
	}
	astray := func(p testenv.Packet) bool {
		return testenv.ToPort53(p) && (p.Dst != netip.MustParseAddr(upstream) || p.Src != hostAddrs[0])
	}
	if n := s.Arrived.Sum(t, astray).Count; n != 0 {
		t.Errorf("%d packets to port 53 left the host: %v", n, s.Arrived.Packets(t))
	}
}

// learned returns what policy show lists: the names of each address.
func (s *named) learned(t testing.TB, id string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, l := range s.Show(t, id).Learned {
		all[l.Address] = append(all[l.Address], l.Names...)
	}
	return all
}

// domainsInForce waits until the policy allows and denies that many names.
func (s *named) domainsInForce(t testing.TB, id string, allow, deny int) {
	t.Helper()
	testenv.Eventually(t, "names in force", func() bool {
		dns := s.Show(t, id).Policy.DNS
		return len(dns.Allow) == allow && len(dns.Deny) == deny
	})
}

// opens reports whether a new connection of the place to the address comes about at once.
func (s *named) opens(t testing.TB, p place, addr string) bool {
	t.Helper()
	probe := testenv.Probe{Kind: testenv.TCP, To: netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort), Wait: 50 * time.Millisecond}
	return p.Probe(t, probe).Answered
}
