// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// original is a policy with a zone of which the servers are whoever is asked, and rules for these.
func original(servers ...string) string {
	return fmt.Sprintf("mode: allowlist\nallow: [%s]\ndns:\n  allow: ['*.matrix.example', '*.corp.example']\n  forward: [{zone: matrix.example, to: original}, {zone: corp.example, to: original}]\n",
		strings.Join(append([]string{alwaysAllowed}, servers...), ", "))
}

// newOriginal is a scene with servers that know matrix.example, and differ in what they say of corp.example.
func newOriginal(t *testing.T) *named {
	t.Helper()
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Records: []string{"*.matrix.example. 60 IN A " + giveaway, "*.corp.example. 60 IN A " + giveaway}})
	for i, other := range s.Others {
		other.Serve(t, testenv.Zone{
			Records:  []string{fmt.Sprintf("*.corp.example. 60 IN A 203.0.113.%d", 201+i)},
			Numbered: map[string][]netip.Prefix{"matrix.example.": matrixPrefixes},
		})
	}
	return s
}

// TestOriginalServers: names of a zone that is forwarded to `original` are those of whom the workload itself has asked,
// by whatever kind of socket, from wherever. Nobody else is asked for them, and for no others is anybody.
func TestOriginalServers(t *testing.T) {
	s := newOriginal(t)
	s.Policy(t, "names.yaml", original(`"9.9.9.9:53/udp"`, `"[2620:fe::fe]:53"`, "10.77.0.1", `"[fd77::1]:53"`, "127.0.0.53"))
	s.Policy(t, "around.yaml", "match: {around: yes}\n"+original("9.9.9.9", "2620:fe::/32", "10.77.0.0/24", "fd77::/64", "127.0.0.0/8"))
	s.Start(t)

	outer := testenv.NewCgroup(t)
	inner := s.newJob(t, outer.Child(t, "inner"), "nested cgroup")
	cg := testenv.NewCgroup(t)
	container := place{testenv.StartWorkload(t, s.Workload, cg), "container", s.Workload, cg, []string{"--cgroup", cg.Path}}
	s.Attach(t, "--cgroup", outer.Path, "--metadata", "around=yes")
	for _, p := range []place{s.job, inner, container} {
		s.attach(t, p)
	}
	n := 1
	resolve := func(p place, servers ...string) {
		t.Helper()
		lookups := matrix(servers)
		for i := range lookups {
			lookups[i].Name, lookups[i].IPv6 = fmt.Sprintf("n%d.matrix.example", n+i), (n+i)%2 == 0
		}
		var addrs []string
		for i, a := range s.lookAll(t, p, lookups) {
			addrs = append(addrs, s.checkNumbered(t, lookups[i], a, n+i))
			asked := func(q testenv.Question) bool {
				return q.Name == lookups[i].Name+"." && q.Addr == netip.MustParseAddr(lookups[i].Server)
			}
			if s.Others[0].Asked(asked)+s.Others[1].Asked(asked) == 0 {
				t.Errorf("%s: %s: it was not asked", p.name, lookups[i])
			}
		}
		n += len(lookups)
		s.reaches(t, p, true, addrs...)
	}
	resolve(s.job, public, public6, gateway, gateway6, localStub)
	resolve(inner, public, public6, localStub)
	// A cgroup in a container behind an interface that is not attached, and then is.
	resolve(container, public, public6, gateway)
	s.attach(t, s.inside)
	resolve(container, public, gateway6)
	resolve(s.inside, public, public6)

	s.Kill(t)
	s.restart(t, s.job, container)
	resolve(s.job, public, localStub)
	resolve(container, public6)
	if asked := s.Upstream.Asked(nil); asked != 0 {
		t.Errorf("the daemon's upstream was asked %d times", asked)
	}
}

// twoServers asks two servers for one name from one socket, before it reads what either says.
var twoServers = testenv.NewFunc("two-servers", func(args []string) (err error) {
	family := unix.AF_INET
	if netip.MustParseAddr(args[0]).Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(testenv.Patience / time.Second)}); err != nil {
		return err
	}
	for i, arg := range args {
		query := new(dns.Msg).SetQuestion("same.corp.example.", dns.TypeA)
		query.Id = uint16(i)
		b, err := query.Pack()
		if err != nil {
			return err
		}
		var to unix.Sockaddr = &unix.SockaddrInet6{Port: 53, Addr: netip.MustParseAddr(arg).As16()}
		if family == unix.AF_INET {
			to = &unix.SockaddrInet4{Port: 53, Addr: netip.MustParseAddr(arg).As4()}
		}
		if err := unix.Sendto(fd, b, 0, to); err != nil {
			return err
		}
	}
	for range args {
		b := make([]byte, 1500)
		n, _, err := unix.Recvfrom(fd, b, 0)
		for errors.Is(err, unix.EINTR) {
			n, _, err = unix.Recvfrom(fd, b, 0)
		}
		if err != nil {
			return err
		}
		reply := new(dns.Msg)
		if err := reply.Unpack(b[:n]); err != nil {
			return err
		}
		for _, rr := range reply.Answer {
			fmt.Println(args[reply.Id], rr.(*dns.A).A)
		}
	}
	return nil
})

// TestTwoOriginalServers: one socket that asks two servers the same at once has from each what that one says.
func TestTwoOriginalServers(t *testing.T) {
	s := newOriginal(t)
	s.Policy(t, "names.yaml", original(public, public6, gateway, gateway6))
	s.Start(t)
	s.attach(t, s.job)
	for _, servers := range [][]string{{public, gateway}, {gateway6, public6}, {gateway, public}} {
		for range rounds(20, 200) {
			cmd := twoServers.Command(servers...)
			var out strings.Builder
			cmd.Stdout = &out
			testenv.Start(t, cmd, s.job.ns, s.job.cg)
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, server := range servers {
				says := "203.0.113.201"
				if server == gateway || server == gateway6 {
					says = "203.0.113.202"
				}
				want = append(want, server+" "+says)
			}
			got := strings.Split(strings.TrimSpace(out.String()), "\n")
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Fatalf("%v, want %v", got, want)
			}
		}
	}
}

// TestOriginalServersThatAreNotAsked: without a rule, and for what only another namespace's lo has, the answer is SERVFAIL
// and says why, and nobody is asked: neither who has that address in a namespace of the daemon's, nor its upstream.
func TestOriginalServersThatAreNotAsked(t *testing.T) {
	s := newOriginal(t)
	s.Policy(t, "names.yaml", original(`"9.9.9.9:53/tcp"`))
	s.Policy(t, "lo.yaml", "match: {lo: allow}\nloopback: allow\n"+original())
	s.Policy(t, "all.yaml", "match: {all: yes}\nloopback: allow\n"+original("0.0.0.0/0", `"::/0"`))
	s.Policy(t, "closed.yaml", "match: {lo: deny}\nloopback: deny\n"+original("0.0.0.0/0", `"::/0"`))
	s.Start(t)
	cg := testenv.NewCgroup(t)
	container := place{testenv.StartWorkload(t, s.Workload, cg), "container", s.Workload, cg, []string{"--cgroup", cg.Path}}
	outer := testenv.NewCgroup(t)
	inner := s.newJob(t, outer.Child(t, "inner"), "nested cgroup")
	s.Attach(t, "--cgroup", outer.Path)
	const (
		denied = "which its rules do not allow"
		other  = "which only its own network namespace reaches"
		nobody = "which is not known"
	)
	for _, test := range []struct {
		place
		metadata string
		servers  []string
		why      string
	}{
		{s.job, "lo=own", []string{public, public6, gateway, localStub}, denied},
		{s.newJob(t, testenv.NewCgroup(t), "loopback allow"), "lo=allow", []string{public, gateway, gateway6, localStub}, denied},
		{s.newJob(t, testenv.NewCgroup(t), "loopback deny"), "lo=deny", []string{gateway, gateway6, localStub}, denied},
		{inner, "all=yes", []string{public, public6, localStub}, denied},
		{s.newJob(t, testenv.NewCgroup(t), "everything"), "all=yes", []string{"0.0.0.0", "224.0.0.251"}, nobody},
		{container, "all=yes", []string{localStub, dockerStub, "::1"}, other},
	} {
		id := s.attach(t, test.place, "--metadata", test.metadata)
		for _, server := range test.servers {
			for _, overTCP := range []bool{false, true} {
				a := s.look(t, test.place, testenv.Lookup{By: testenv.Dig, Server: server, Name: "n9.matrix.example", TCP: overTCP})
				if a.Status != "SERVFAIL" || !strings.Contains(a.Extended, test.why) {
					t.Errorf("%s asks %s, TCP %t: want SERVFAIL, %s:\n%s", test.name, server, overTCP, test.why, a)
				}
			}
		}
		own := s.addressOf(t, id)
		if a := s.look(t, test.place, testenv.Lookup{By: testenv.Dig, Server: own.Addr().String(), Port: own.Port(), Name: "n9.matrix.example"}); a.Status != "SERVFAIL" || !strings.Contains(a.Extended, nobody) {
			t.Errorf("%s asks its DNS address: %s", test.name, a)
		}
		host := place{s.OnHost, "host", s.Host, nil, nil}
		if a := s.look(t, host, testenv.Lookup{By: testenv.Dig, Server: own.Addr().String(), Port: own.Port(), Name: "n9.matrix.example"}); a.Status != "SERVFAIL" || !strings.Contains(a.Extended, nobody) {
			t.Errorf("the host asks the DNS address of %s: %s", test.name, a)
		}
		if learned := s.learned(t, id); len(learned) != 0 {
			t.Errorf("%s has learned %v", test.name, learned)
		}
	}
	if n := s.Upstream.Asked(nil); n != 0 {
		t.Errorf("the daemon's upstream was asked %d times", n)
	}
	s.nobodyElseAsked(t)
}

// addressOf is the DNS address of an attachment.
func (s *named) addressOf(t *testing.T, id string) netip.AddrPort {
	t.Helper()
	for _, a := range s.List(t) {
		if a.ID == id {
			return netip.MustParseAddrPort(a.DNSAddress)
		}
	}
	t.Fatalf("attachment %s is not listed", id)
	return netip.AddrPort{}
}

// TestOriginalUnbound: a server of another make, asked where it listens on the host's lo.
func TestOriginalUnbound(t *testing.T) {
	testenv.Require(t, testenv.Program("unbound"))
	s := newOriginal(t)
	s.Policy(t, "names.yaml", original(dockerStub))
	s.Start(t)
	s.attach(t, s.job)
	startStub(t, s.Host, dockerStub+":53") // asks the public resolver
	lookups := matrix([]string{dockerStub})
	var addrs []string
	for i, a := range s.lookAll(t, s.job, lookups) {
		addrs = append(addrs, s.checkNumbered(t, lookups[i], a, i+1))
	}
	s.reaches(t, s.job, true, addrs...)
}
