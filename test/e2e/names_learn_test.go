// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestOnlyTheAnswerIsLearned: the chain that begins at the question, and nothing that came along.
func TestOnlyTheAnswerIsLearned(t *testing.T) {
	zone := testenv.Zone{
		Records: []string{
			"www.shop.example. 60 IN CNAME edge.cdn.example.", "edge.cdn.example. 60 IN CNAME pop.cdn.example.",
			"pop.cdn.example. 60 IN A 203.0.113.1", "pop.cdn.example. 60 IN A 203.0.113.2", "pop.cdn.example. 60 IN AAAA 2001:db8:200::1",
			"loop.shop.example. 60 IN CNAME loop2.shop.example.", "loop2.shop.example. 60 IN CNAME loop.shop.example.",
			"svc.shop.example. 60 IN HTTPS 1 . alpn=h2 ipv4hint=203.0.113.3 ipv6hint=2001:db8:200::3 ech=AEj+DQBE",
			"big.shop.example. 60 IN A 203.0.113.5",
		},
		Beside: map[string][]string{
			"www.shop.example.": {"unrelated.example. 60 IN A 203.0.113.66", "www.bank.example. 60 IN A 203.0.113.67"},
		},
		Truncated: []string{"big.shop.example."},
	}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "names.yaml", allowing("*.shop.example"))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		s.reaches(t, p, false, "203.0.113.1", "203.0.113.2", "2001:db8:200::1", "203.0.113.3", "203.0.113.5")
		a := s.dig(t, p, "www.shop.example")
		if !sameAddrs(a.Addrs, "203.0.113.1", "203.0.113.2") || strings.Contains(a.Text, "unrelated") || strings.Contains(a.Text, "bank") {
			t.Errorf("www.shop.example: %s", a)
		}
		// musl takes every address in an answer, whosever it is.
		if a := s.look(t, p, testenv.Lookup{By: testenv.Musl, Name: "www.shop.example"}); !sameAddrs(a.Addrs, "203.0.113.1", "203.0.113.2") {
			t.Errorf("www.shop.example by musl: %s", a)
		}
		s.reaches(t, p, true, "203.0.113.1", "203.0.113.2")
		s.reaches(t, p, false, "203.0.113.66", "203.0.113.67", "2001:db8:200::1")
		if a := s.look(t, p, testenv.Lookup{Name: "www.shop.example", IPv6: true}); !sameAddrs(a.Addrs, "2001:db8:200::1") {
			t.Errorf("www.shop.example AAAA: %s", a)
		}
		s.reaches(t, p, true, "2001:db8:200::1")

		// A name of the chain is no name that may be asked for.
		if a := s.dig(t, p, "pop.cdn.example"); a.Status != "NXDOMAIN" {
			t.Errorf("pop.cdn.example: %s", a)
		}
		if a := s.dig(t, p, "loop.shop.example"); len(a.Addrs) != 0 {
			t.Errorf("a chain without end: %s", a)
		}
		https := s.look(t, p, testenv.Lookup{Name: "svc.shop.example", Type: "HTTPS"})
		if !strings.Contains(https.Text, "203.0.113.3") || strings.Contains(https.Text, "ech=") {
			t.Errorf("svc.shop.example HTTPS: %s", https)
		}
		s.reaches(t, p, true, "203.0.113.3", "2001:db8:200::3")
		s.resolves(t, p, "big.shop.example", "203.0.113.5") // asked again over TCP
		s.reaches(t, p, true, "203.0.113.5")
		want := map[string]bool{"203.0.113.1": true, "203.0.113.2": true, "2001:db8:200::1": true, "203.0.113.3": true, "2001:db8:200::3": true, "203.0.113.5": true}
		for addr, names := range s.learned(t, id) {
			if !want[addr] || len(names) == 0 || !strings.HasSuffix(names[0], ".shop.example") {
				t.Errorf("policy show: %s, learned by %v", addr, names)
			}
			delete(want, addr)
		}
		if len(want) != 0 {
			t.Errorf("policy show does not list %v", want)
		}
	})
	s.nobodyElseAsked(t)
}

// TestPortsOfADomainRule bind what it teaches.
func TestPortsOfADomainRule(t *testing.T) {
	zone := testenv.Zone{Records: []string{"www.example. 60 IN A 203.0.113.1"}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "names.yaml", fmt.Sprintf("mode: allowlist\nallow: [%s]\ndns: {allow: [{domain: www.example, ports: [%d/tcp]}]}\n", alwaysAllowed, otherPort))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, _ string) {
		s.resolves(t, p, "www.example", "203.0.113.1")
		other := fmt.Sprintf("203.0.113.1:%d", otherPort)
		s.check(t, p.Workload, []row{
			{"port of the rule", other, []testenv.ProbeKind{testenv.TCP}, false, true},
			{"port of the rule, mapped", other, []testenv.ProbeKind{testenv.TCP}, true, true},
			{"port of the rule, other protocol", other, udpKinds, false, false},
			{"other port", "203.0.113.1:7", tcpUDP, false, false},
		}, nil)
	})
}

// TestDenyRuleOutranksLearned: a static rule always does.
func TestDenyRuleOutranksLearned(t *testing.T) {
	zone := testenv.Zone{Records: []string{"www.example. 60 IN A 203.0.113.1", "www.example. 60 IN A 203.0.113.129"}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "names.yaml", fmt.Sprintf("mode: allowlist\nallow: [%s]\ndeny: [203.0.113.128/25]\ndns: {allow: [www.example]}\n", alwaysAllowed))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, _ string) {
		s.dig(t, p, "www.example")
		s.reaches(t, p, true, "203.0.113.1")
		s.reaches(t, p, false, "203.0.113.129")
	})
}

// TestPrivateAnswers are removed unless somebody said that they may be: a name in somebody else's hands must not open
// what is behind the filter.
func TestPrivateAnswers(t *testing.T) {
	metadata, host := "169.254.169.254", hostAddrs[0].String()
	zone := testenv.Zone{Records: []string{
		"mixed.evil.example. 60 IN A 203.0.113.1", "mixed.evil.example. 60 IN A " + metadata,
		"host.evil.example. 60 IN A " + host, "meta.evil.example. 60 IN A " + metadata,
		"lo.evil.example. 60 IN A 127.0.0.1", "rfc1918.evil.example. 60 IN A 10.1.2.3",
		"six.evil.example. 60 IN AAAA fd00:ec2::254", "six.evil.example. 60 IN AAAA ::ffff:203.0.113.9", "six.evil.example. 60 IN AAAA 64:ff9b::203.0.113.9",
		"svc.evil.example. 60 IN HTTPS 1 . ipv4hint=" + metadata,
		"db.corp.example. 60 IN A " + metadata, "static.evil.example. 60 IN A 10.9.9.9",
	}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Outside.Own(t, netip.MustParsePrefix("10.9.0.0/16"))
	s.Policy(t, "names.yaml", fmt.Sprintf("mode: allowlist\nallow: [%s, 10.9.9.0/24]\ndns: {allow: [\"*.evil.example\", {domain: db.corp.example, private: true}]}\n", alwaysAllowed))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		if a := s.dig(t, p, "mixed.evil.example"); !sameAddrs(a.Addrs, "203.0.113.1") || a.Extended == "" {
			t.Errorf("mixed: %s", a)
		}
		for _, name := range []string{"host", "meta", "lo", "rfc1918"} {
			if a := s.dig(t, p, name+".evil.example"); len(a.Addrs) != 0 {
				t.Errorf("%s: %s", name, a)
			}
		}
		if a := s.look(t, p, testenv.Lookup{Name: "six.evil.example", IPv6: true}); len(a.Addrs) != 0 {
			t.Errorf("six: %s", a)
		}
		if a := s.look(t, p, testenv.Lookup{Name: "svc.evil.example", Type: "HTTPS"}); strings.Contains(a.Text, "ipv4hint") {
			t.Errorf("hint: %s", a)
		}
		s.reaches(t, p, true, "203.0.113.1")
		s.reaches(t, p, false, metadata)
		s.resolves(t, p, "static.evil.example", "10.9.9.9")
		s.reaches(t, p, true, "10.9.9.9")
		for addr := range s.learned(t, id) {
			if addr != "203.0.113.1" && addr != "10.9.9.9" {
				t.Errorf("learned: %s", addr)
			}
		}
		s.resolves(t, p, "db.corp.example", metadata)
		s.reaches(t, p, true, metadata)
	})
	s.nobodyElseAsked(t)
}

// TestLearnedLimit: what the kernel has no room for is not answered, and not a part of an answer either; what it holds
// stays.
func TestLearnedLimit(t *testing.T) {
	zone := testenv.Zone{
		Records:  []string{"three.example. 60 IN A 203.0.113.101", "three.example. 60 IN A 203.0.113.102", "three.example. 60 IN A 203.0.113.103"},
		Numbered: map[string][]netip.Prefix{"full.example.": matrixPrefixes},
	}
	s := newNamed(t, testenv.VethDevice, zone, "NETFENCE_LIMITS_LEARNED=4")
	s.Policy(t, "names.yaml", allowing("*.full.example", "three.example"))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		s.resolves(t, p, "n1.full.example", "203.0.113.1")
		s.resolves(t, p, "n2.full.example", "203.0.113.2")
		if a := s.dig(t, p, "three.example"); a.Status != "SERVFAIL" || len(a.Addrs) != 0 {
			t.Errorf("three addresses where two have room: %s", a)
		}
		s.reaches(t, p, false, "203.0.113.101", "203.0.113.102", "203.0.113.103")
		s.resolves(t, p, "n3.full.example", "203.0.113.3")
		s.resolves(t, p, "n4.full.example", "203.0.113.4")
		for n := 5; n < 10; n++ {
			if a := s.dig(t, p, fmt.Sprintf("n%d.full.example", n)); a.Status != "SERVFAIL" || len(a.Addrs) != 0 {
				t.Errorf("name %d of four: %s", n, a)
			}
		}
		s.reaches(t, p, false, "203.0.113.5", "203.0.113.9")
		s.resolves(t, p, "n2.full.example", "203.0.113.2") // known already
		s.reaches(t, p, true, "203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4")
		if learned := s.learned(t, id); len(learned) != 4 {
			t.Errorf("policy show: %v", learned)
		}
	})
}

// TestUpstreamFails: an answer that is not there is SERVFAIL, and the next upstream is asked before that.
func TestUpstreamFails(t *testing.T) {
	const second = "198.51.100.54"
	zone := testenv.Zone{Numbered: map[string][]netip.Prefix{"up.example.": matrixPrefixes}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Env = append(s.Env, "NETFENCE_DNS_UPSTREAM="+upstream+","+second)
	other := testenv.ServeDNS(t, s.Outside, zone, second)
	s.Policy(t, "names.yaml", allowing("*.up.example"))
	s.Start(t)
	p := s.inside
	s.attach(t, p)
	s.resolves(t, p, "n1.up.example", "203.0.113.1")
	for i, broken := range []func(bool){s.Upstream.Hang, s.Upstream.Fail} {
		broken(true)
		s.resolves(t, p, fmt.Sprintf("n%d.up.example", 2+i), fmt.Sprintf("203.0.113.%d", 2+i))
		broken(false)
	}
	s.Upstream.Hang(true)
	other.Fail(true)
	if a := s.dig(t, p, "n9.up.example"); a.Status != "SERVFAIL" {
		t.Errorf("without an upstream: %s", a)
	}
	s.reaches(t, p, false, "203.0.113.9")
	s.Upstream.Hang(false)
	other.Fail(false)
	s.resolves(t, p, "n9.up.example", "203.0.113.9")
	s.reaches(t, p, true, "203.0.113.9")
}
