// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestOtherWaysToNames: where names are filtered, what resolves them otherwise is dropped unless a rule speaks of its
// port, even to addresses that are allowed; and port 53 leads to Netfence only, whatever is sent there.
func TestOtherWaysToNames(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, testenv.Zone{})
	for _, port := range []uint16{137, 443, 853, 5353, 5355} {
		testenv.EchoServer(t, s.Outside, port)
	}
	tcp := []testenv.ProbeKind{testenv.TCP}
	rows := func(filtered bool) []row {
		closed := !filtered
		return []row{
			{"DNS over TLS", "203.0.113.1:853", tcpUDP, false, closed},
			{"DNS over TLS, IPv6", "[2001:db8:200::1]:853", tcpUDP, false, closed},
			{"DNS over TLS, mapped", "203.0.113.1:853", tcpUDP, true, closed},
			{"mDNS", "203.0.113.1:5353", udpKinds, false, closed},
			{"mDNS, IPv6", "[2001:db8:200::1]:5353", udpKinds, false, closed},
			{"LLMNR", "203.0.113.1:5355", udpKinds, false, closed},
			{"NetBIOS", "203.0.113.1:137", udpKinds, false, closed},
			{"a rule names the port", "203.0.113.9:853", tcp, false, true},
			{"a rule names the port, other protocol", "203.0.113.9:853", udpKinds, false, closed},
			{"another port", "203.0.113.1:7", tcpUDP, false, true},
			{"DNS over HTTPS is an address like any other: allowed", "203.0.113.1:443", tcpUDP, false, true},
			{"or not", public + ":443", tcpUDP, false, false},
			{"or not, IPv6", "[" + public6 + "]:443", tcpUDP, false, false},
		}
	}
	const allow = "allow: [" + alwaysAllowed + ", 203.0.113.0/24, 2001:db8:200::/48, \"203.0.113.9:853/tcp\"]\n"
	s.Policy(t, "names.yaml", "mode: allowlist\n"+allow)
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		inMode := func(text string, mode string) {
			t.Helper()
			s.Policy(t, "names.yaml", text)
			testenv.Eventually(t, "dns mode "+mode, func() bool { return s.Show(t, id).Policy.DNS.Mode.String() == mode })
		}
		inMode("mode: allowlist\n"+allow, "allowlist")
		s.check(t, p.Workload, rows(true), nil)
		// What is no query, to port 53 of what is allowed.
		for _, to := range []string{"203.0.113.1:53", "[2001:db8:200::1]:53"} {
			for _, kind := range tcpUDP {
				p.Probe(t, testenv.Probe{Kind: kind, To: netip.MustParseAddrPort(to), Count: 3})
			}
		}
		s.settle(t, p.Workload)
		s.nobodyElseAsked(t)
		inMode("mode: allowlist\n"+allow+"dns: {mode: disabled}\n", "disabled")
		s.check(t, p.Workload, rows(false), nil)
	})
	if n := s.Upstream.Asked(nil); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// TestEgressNames: an interface that is filtered where it leads out has names like any other, for the host's own
// processes and for what is routed through it. The daemon's queries to its upstream leave by it as well.
func TestEgressNames(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Numbered: map[string][]netip.Prefix{"allowed.example.": matrixPrefixes}})
	s.Policy(t, "names.yaml", allowing("*.allowed.example"))
	s.Start(t)
	if r := s.Run(t, "attach", "--interface", uplink, "--direction", "egress"); r.Code != 0 || r.Stderr != "" {
		t.Errorf("attach: exit code %d, want 0 without a warning; stderr:\n%s", r.Code, r.Stderr)
	}
	n := 0
	for _, p := range []place{{s.OnHost, "host", s.Host, nil, nil}, s.inside} {
		for _, server := range []string{public, public6} {
			for _, by := range []testenv.Resolver{testenv.Glibc, testenv.Musl, testenv.GoResolver, testenv.Dig} {
				for _, overTCP := range []bool{false, true} {
					if overTCP && by == testenv.Musl {
						continue
					}
					n++
					l := testenv.Lookup{By: by, Server: server, Name: fmt.Sprintf("n%d.allowed.example", n), IPv6: n%2 == 0, TCP: overTCP}
					s.reaches(t, p, true, s.checkAnswer(t, l, s.look(t, p, l), n))
				}
			}
			if a := s.look(t, p, testenv.Lookup{Server: server, Name: "another.example"}); a.Status != "NXDOMAIN" {
				t.Errorf("%s asks %s for what no rule allows: %s", p.name, server, a)
			}
		}
		s.reaches(t, p, false, "203.0.113.120", "2001:db8:200::120")
	}
	s.nobodyElseAsked(t)
}
