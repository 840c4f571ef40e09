// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// Configurations as they are found in containers. Names are typed as in the comment.
const (
	threeServers = "nameserver 9.9.9.9\nnameserver 2620:fe::fe\nnameserver 198.51.100.9\n" // nK.matrix.example
	kubernetes   = "nameserver 10.96.0.10\nsearch ns.svc.other.example svc.other.example matrix.example\noptions ndots:5\n"
)

// TestResolverConfigurations is what resolvers make of more than one nameserver and of search lists: musl asks all
// servers at once over one socket, and a refused name must have them go on to the next.
func TestResolverConfigurations(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Numbered: map[string][]netip.Prefix{"matrix.example.": matrixPrefixes}})
	s.Policy(t, "names.yaml", allowing("*.matrix.example"))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, _ string) {
		var lookups []testenv.Lookup
		for _, by := range []testenv.Resolver{testenv.Glibc, testenv.Musl, testenv.GoResolver, testenv.Dig, testenv.Nslookup} {
			n := len(lookups) + 1
			lookups = append(lookups, testenv.Lookup{By: by, Conf: threeServers, Name: fmt.Sprintf("n%d.matrix.example", n), IPv6: n%2 == 0})
			if by != testenv.Nslookup { // it has no search list
				lookups = append(lookups, testenv.Lookup{By: by, Conf: kubernetes, Name: fmt.Sprintf("n%d", n+1), IPv6: n%2 == 0})
			}
		}
		for i, a := range s.lookAll(t, p, lookups) {
			s.checkNumbered(t, lookups[i], a, i+1)
		}
	})
	for _, name := range []string{"ns.svc.other.example", "svc.other.example"} {
		if n := s.Upstream.Asked(func(q testenv.Question) bool { return strings.HasSuffix(q.Name, "."+name+".") }); n != 0 {
			t.Errorf("the upstream was asked %d times for names below %s, which no rule allows", n, name)
		}
	}
	s.nobodyElseAsked(t)
}

// TestStubBehindAnInterface: a resolver of the container's own, as systemd-resolved at 127.0.0.53 or Docker's at
// 127.0.0.11, answers on its lo, where nothing is intercepted. What it asks itself is.
func TestStubBehindAnInterface(t *testing.T) {
	testenv.Require(t, testenv.Program("unbound"), testenv.Program("nft"))
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Numbered: map[string][]netip.Prefix{"matrix.example.": matrixPrefixes}})
	s.Policy(t, "names.yaml", allowing("*.matrix.example"))
	s.Start(t)
	s.attach(t, s.inside)
	startStub(t, s.Workload, localStub+":53")
	startStub(t, s.Workload, fmt.Sprintf("%s:%d", dockerStub, dockerPort))
	dockerNAT(t, s.Workload)
	var lookups []testenv.Lookup
	for _, server := range []string{localStub, dockerStub} {
		for _, by := range []testenv.Resolver{testenv.Glibc, testenv.Musl, testenv.GoResolver, testenv.Dig, testenv.Nslookup} {
			n := len(lookups) + 1
			lookups = append(lookups, testenv.Lookup{By: by, Server: server, Name: fmt.Sprintf("n%d.matrix.example", n), IPv6: n%2 == 0})
		}
		lookups = append(lookups, testenv.Lookup{By: testenv.Dig, Server: server, TCP: true, Name: fmt.Sprintf("n%d.matrix.example", len(lookups)+1), IPv6: len(lookups)%2 == 1})
	}
	var addrs []string
	for i, a := range s.lookAll(t, s.inside, lookups) {
		addrs = append(addrs, s.checkAnswer(t, lookups[i], a, i+1))
	}
	s.reaches(t, s.inside, true, addrs...)
	for _, server := range []string{localStub, dockerStub} {
		if a := s.look(t, s.inside, testenv.Lookup{Server: server, Name: "another.example"}); a.Status != "NXDOMAIN" {
			t.Errorf("%s is asked for what no rule allows: %s", server, a)
		}
	}
	s.nobodyElseAsked(t)
}

// Docker's resolver has a port of its own in each container's namespace; its address leads there by NAT.
const (
	dockerStub = "127.0.0.11"
	dockerPort = 41053
)

func dockerNAT(t *testing.T, ns *testenv.NS) {
	t.Helper()
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(fmt.Sprintf(`table ip docker {
	chain output { type nat hook output priority -100; ip daddr %[1]s meta l4proto { tcp, udp } th dport 53 dnat to %[1]s:%[2]d; }
}`, dockerStub, dockerPort))
	testenv.Start(t, nft, ns, nil)
	if err := nft.Wait(); err != nil {
		t.Fatalf("nft: %v", err)
	}
}

// startStub starts unbound at the address in a namespace. It forwards to a public resolver.
func startStub(t *testing.T, ns *testenv.NS, at string) {
	t.Helper()
	stub := peers[0]
	stub.at = netip.MustParseAddrPort(at)
	stub.conf = strings.Replace(stub.conf, "num-threads: 2", "do-not-query-localhost: no", 1)
	stub.run(t, ns, public)
}
