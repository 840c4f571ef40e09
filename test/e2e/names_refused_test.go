// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestRefusedNames do not exist, for any resolver; the answer says which rule decided, and nobody upstream hears of it.
func TestRefusedNames(t *testing.T) {
	zone := testenv.Zone{Records: []string{
		"*.allowed.example. 60 IN A 203.0.113.1", "allowed.example. 60 IN A 203.0.113.2", "other.example. 60 IN A 203.0.113.3",
		"use-application-dns.net. 60 IN A 203.0.113.4",
	}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "names.yaml", "mode: allowlist\nallow: ["+alwaysAllowed+"]\n"+
		`dns: {allow: ["*.allowed.example", "use-application-dns.net"], deny: [evil.allowed.example]}`+"\n")
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		s.resolves(t, p, "www.allowed.example", "203.0.113.1")
		asked := s.Upstream.Asked(nil)
		for name, why := range map[string]string{
			"evil.allowed.example": "deny rule evil.allowed.example",
			"EVIL.allowed.example": "deny rule evil.allowed.example",
			"allowed.example":      "no rule", // *.allowed.example is the names below it
			"other.example":        "no rule",
		} {
			a := s.dig(t, p, name)
			if a.Status != "NXDOMAIN" || !strings.HasPrefix(a.Extended, "15 (Blocked)") || !strings.Contains(a.Extended, why) || !strings.Contains(a.Text, "SOA") {
				t.Errorf("%s: want NXDOMAIN with an SOA, and an extended error that says %q:\n%s", name, why, a)
			}
			for _, by := range []testenv.Resolver{testenv.Glibc, testenv.Musl, testenv.GoResolver, testenv.Nslookup} {
				if a := s.look(t, p, testenv.Lookup{By: by, Name: name}); !a.Unknown {
					t.Errorf("%s asks for %s: %s, want that the name is unknown", by, name, a)
				}
			}
		}
		if a := s.dig(t, p, "use-application-dns.net"); a.Status != "NXDOMAIN" {
			t.Errorf("canary of browsers: %s", a)
		}
		if n := s.Upstream.Asked(nil) - asked; n != 0 {
			t.Errorf("the upstream was asked %d times for refused names", n)
		}
		s.reaches(t, p, true, "203.0.113.1")
		s.reaches(t, p, false, "203.0.113.2", "203.0.113.3", "203.0.113.4")
		if list := s.List(t); len(list) == 0 || list[len(list)-1].DNSBlocked == 0 || list[len(list)-1].DNSAllowed == 0 {
			t.Errorf("queries are not counted: %+v", list)
		}
	})
	s.nobodyElseAsked(t)
}

// TestRefusedWithRefused is what a policy may ask for, and the configuration for those that do not say.
func TestRefusedWithRefused(t *testing.T) {
	for _, test := range []struct{ configured, policy, want string }{
		{"nxdomain", "refused", "REFUSED"}, {"refused", "", "REFUSED"}, {"refused", "nxdomain", "NXDOMAIN"},
	} {
		t.Run(test.configured+" "+test.policy, func(t *testing.T) {
			s := newNamed(t, testenv.VethDevice, testenv.Zone{}, "NETFENCE_DNS_REFUSE_WITH="+test.configured)
			policy := "mode: allowlist\n"
			if test.policy != "" {
				policy += "dns: {refuse_with: " + test.policy + "}\n"
			}
			s.Policy(t, "names.yaml", policy)
			s.Start(t)
			s.both(t, func(t *testing.T, p place, _ string) {
				if a := s.dig(t, p, "www.example"); a.Status != test.want || !strings.HasPrefix(a.Extended, "15 (Blocked)") {
					t.Errorf("want %s with an extended error:\n%s", test.want, a)
				}
			})
			if n := s.Upstream.Asked(nil); n != 0 {
				t.Errorf("the upstream was asked %d times", n)
			}
			s.nobodyElseAsked(t)
		})
	}
}

// TestBlockAllNames refuses every query, whatever the policy says of names.
func TestBlockAllNames(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, giveawayZone)
	// Block-all drops ARP and neighbour discovery as well, so the way to the gateway has to be known before.
	asked := []string{public, public6}
	for _, p := range []place{s.inside, s.job} {
		for _, server := range asked {
			if a := s.look(t, p, testenv.Lookup{Server: server, Name: "www.example"}); !sameAddrs(a.Addrs, giveaway) {
				t.Fatalf("without the filter: %s", a)
			}
		}
	}
	before := s.Others[0].Asked(nil)
	s.Policy(t, "names.yaml", "mode: block-all\ndns: {mode: disabled}\n")
	s.Start(t)
	s.both(t, func(t *testing.T, p place, _ string) {
		for _, server := range asked {
			if a := s.look(t, p, testenv.Lookup{Server: server, Name: "www.example"}); a.Status != "NXDOMAIN" {
				t.Errorf("block-all, %s: %s", server, a)
			}
		}
	})
	if n, others := s.Upstream.Asked(nil), s.Others[0].Asked(nil)-before; n != 0 || others != 0 {
		t.Errorf("the upstream was asked %d times, others %d times", n, others)
	}
}

// TestDenylistNames resolve unless a rule denies them, and are reached as addresses are.
func TestDenylistNames(t *testing.T) {
	zone := testenv.Zone{Records: []string{"free.example. 60 IN A 203.0.113.1", "*.bad.example. 60 IN A 203.0.113.2"}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "names.yaml", "mode: denylist\ndeny: [203.0.113.9]\ndns: {deny: [\"*.bad.example\"]}\n")
	s.Start(t)
	s.both(t, func(t *testing.T, p place, _ string) {
		s.resolves(t, p, "free.example", "203.0.113.1")
		if a := s.dig(t, p, "www.bad.example"); a.Status != "NXDOMAIN" || !strings.Contains(a.Extended, "*.bad.example") {
			t.Errorf("denied name: %s", a)
		}
		s.reaches(t, p, true, "203.0.113.1", "203.0.113.2")
		s.reaches(t, p, false, "203.0.113.9")
	})
	if n := s.Upstream.AskedFor("www.bad.example"); n != 0 {
		t.Errorf("the upstream was asked %d times for a denied name", n)
	}
	s.nobodyElseAsked(t)
}

// TestDisabledNames are nobody's business: queries go where they are addressed, if the address is allowed.
func TestDisabledNames(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, giveawayZone)
	s.Policy(t, "names.yaml", "mode: allowlist\nallow: ["+alwaysAllowed+", "+public+"]\ndns: {mode: disabled}\n")
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		before := s.Others[0].Asked(nil)
		s.resolves(t, p, "www.example", giveaway)
		if n := s.Others[0].Asked(nil) - before; n != 1 {
			t.Errorf("the resolver was asked %d times, want once", n)
		}
		s.reaches(t, p, false, giveaway)
		if learned := s.learned(t, id); len(learned) != 0 {
			t.Errorf("learned: %v", learned)
		}
	})
	if n := s.Upstream.Asked(nil); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}
