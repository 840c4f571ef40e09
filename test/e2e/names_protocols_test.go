// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestOtherWaysToNames: where names are filtered, what resolves them otherwise is dropped unless a rule speaks of its
// port, even to addresses that are allowed; and port 53 leads to Netfence only, whatever is sent there.
func TestOtherWaysToNames(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, testenv.Zone{})
	for _, port := range []uint16{137, 853, 5353, 5355} {
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

// TestEgressNames: an interface that is filtered where it leads out has no names yet. Queries are dropped, but for the
// daemon's own, and attach says so.
func TestEgressNames(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Records: []string{"www.example. 60 IN A 203.0.113.1"}})
	s.Policy(t, "names.yaml", "mode: allowlist\nallow: ["+alwaysAllowed+", "+public+"]\ndns: {allow: [www.example]}\n")
	s.Start(t)
	r := s.Run(t, "attach", "--interface", uplink, "--direction", "egress")
	if r.Code != 0 || r.Stderr == "" {
		t.Errorf("attach: exit code %d, want 0 and a warning; stderr:\n%s", r.Code, r.Stderr)
	}
	s.attach(t, s.job)
	for _, p := range []testenv.ProbeKind{testenv.UDPSendto, testenv.TCP} {
		probe := testenv.Probe{Kind: p, To: netip.AddrPortFrom(netip.MustParseAddr(public), 53)}
		if out := s.OnHost.Probe(t, probe); out.Answered {
			t.Errorf("%s to port 53: %s", p, out)
		}
	}
	s.resolves(t, s.job, "www.example", "203.0.113.1") // asked by the daemon, through that device
	s.nobodyElseAsked(t)
}
