// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// TestLimitsAreTold: an attachment that has all that it may is told so, by the answer and by an event, and others have
// theirs.
func TestLimitsAreTold(t *testing.T) {
	for _, limit := range []string{"learned", "names", "queries"} {
		t.Run(limit, func(t *testing.T) {
			t.Parallel() // it mostly waits
			const silent = "198.51.100.99"
			zone := testenv.Zone{Numbered: map[string][]netip.Prefix{"full.example.": matrixPrefixes}}
			s := newNamed(t, testenv.VethDevice, zone, "NETFENCE_LIMITS_"+strings.ToUpper(limit)+"=3")
			s.Policy(t, "names.yaml", allowing("*.full.example", "*.hangs.example")+"  forward: [{zone: hangs.example, to: ["+silent+"]}]\n")
			testenv.ServeDNS(t, s.Outside, zone, silent).Hang(true)
			s.Start(t)
			ids := []string{s.attach(t, s.inside), s.attach(t, s.job)}
			for i, p := range []place{s.inside, s.job} {
				told := s.Follow(t, "--id", ids[i])
				told.Provoke(t, "events are told", func() { s.resolves(t, p, "n1.full.example", "203.0.113.1") }, func(e harness.Event) bool { return e.DNSDecision != nil })
				if limit == "queries" {
					s.fill(t, p)
				} else {
					s.resolves(t, p, "n2.full.example", "203.0.113.2")
					s.resolves(t, p, "n3.full.example", "203.0.113.3")
					if a := s.dig(t, p, "n4.full.example"); a.Status != "SERVFAIL" || !strings.Contains(a.Extended, "limits."+limit+" is reached") {
						t.Errorf("the fourth: %s", a)
					}
					s.reaches(t, p, true, "203.0.113.1", "203.0.113.2", "203.0.113.3")
					s.reaches(t, p, false, "203.0.113.4")
				}
				testenv.Eventually(t, "the limit is told", func() bool {
					return slices.ContainsFunc(told.All(), func(e harness.Event) bool {
						return e.ID == ids[i] && e.Incident != nil && e.Incident.Kind == limit+"_limit"
					})
				})
				other := []place{s.job, s.inside}[i]
				s.resolves(t, other, "n1.full.example", "203.0.113.1")
				s.reaches(t, other, true, "203.0.113.1")
			}
			if n := s.Others[0].Asked(nil) + s.Others[1].Asked(nil); n != 0 {
				t.Errorf("another resolver was asked %d times", n)
			}
		})
	}
}

// fill has all queries in flight that may be, by asking a server that never answers: more are dropped, or wait over TCP.
func (s *named) fill(t *testing.T, p place) {
	t.Helper()
	var lookups []testenv.Lookup
	for i := range 8 {
		lookups = append(lookups, testenv.Lookup{By: testenv.Dig, Server: public, Name: fmt.Sprintf("n%d.hangs.example", i), Wait: time.Second})
	}
	for i, a := range s.lookAll(t, p, lookups) {
		if a.Status != "timed out" {
			t.Errorf("%s: %s", lookups[i], a)
		}
	}
	if a := s.look(t, p, testenv.Lookup{Name: "n2.full.example", TCP: true}); !sameAddrs(a.Addrs, "203.0.113.2") {
		t.Errorf("over TCP: %s", a)
	}
}
