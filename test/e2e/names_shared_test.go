// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestOneCache: what one attachment has asked for, another is told without its being asked for again: under its own rules,
// and learned by itself. Servers of a policy's own are another matter.
func TestOneCache(t *testing.T) {
	const second = "198.51.100.54"
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Records: []string{"www.example. 300 IN A 203.0.113.1"}})
	other := testenv.ServeDNS(t, s.Outside, testenv.Zone{Records: []string{"www.example. 300 IN A 203.0.113.2"}}, second)
	policy := func(who, text string) { s.Policy(t, who+".yaml", "match: {who: "+who+"}\n"+text) }
	policy("first", allowing("*.example"))
	policy("narrow", allowing("www.other.example"))
	policy("alike", allowing("*.example"))
	policy("elsewhere", allowing("*.example")+"  upstreams: ["+second+"]\n")
	s.Start(t)
	places, ids := map[string]place{"first": s.inside, "narrow": s.job}, map[string]string{}
	for _, who := range []string{"alike", "elsewhere"} {
		places[who] = s.newJob(t, testenv.NewCgroup(t), who)
	}
	for who, p := range places {
		ids[who] = s.attach(t, p, "--metadata", "who="+who)
	}
	asked := func(name string, upstream, second int) {
		t.Helper()
		if n, m := s.Upstream.AskedFor(name), other.AskedFor(name); n != upstream || m != second {
			t.Errorf("%s: asked for %d times, and %d times elsewhere; want %d and %d", name, n, m, upstream, second)
		}
	}
	refused := func(who, name string) {
		t.Helper()
		if a := s.dig(t, places[who], name); a.Status != "NXDOMAIN" || !strings.HasPrefix(a.Extended, "15 (Blocked)") {
			t.Errorf("%s, which no rule of %s allows: %s", name, who, a)
		}
	}
	s.resolves(t, places["first"], "www.example", "203.0.113.1")
	asked("www.example", 1, 0)
	s.reaches(t, places["alike"], false, "203.0.113.1") // the answer of another teaches it nothing
	s.resolves(t, places["alike"], "www.example", "203.0.113.1")
	refused("narrow", "www.example")
	asked("www.example", 1, 0)
	s.resolves(t, places["elsewhere"], "www.example", "203.0.113.2")
	s.resolves(t, places["first"], "www.example", "203.0.113.1")
	asked("www.example", 1, 1)
	for who, p := range places {
		s.reaches(t, p, who == "first" || who == "alike", "203.0.113.1")
		s.reaches(t, p, who == "elsewhere", "203.0.113.2")
	}

	// That there is no such name is kept as well, and is no refusal.
	for _, who := range []string{"first", "alike", "first", "elsewhere", "elsewhere"} {
		if a := s.dig(t, places[who], "none.example"); a.Status != "NXDOMAIN" || a.Extended != "" {
			t.Errorf("none.example: %s", a)
		}
	}
	refused("narrow", "none.example")
	asked("none.example", 1, 1)

	// What is kept opens nothing for a rule that has gone, and is learned again for one that comes.
	policy("first", allowing("www.other.example"))
	testenv.Eventually(t, "the rule is gone", func() bool { return !s.opens(t, places["first"], "203.0.113.1") })
	refused("first", "www.example")
	s.reaches(t, places["first"], false, "203.0.113.1")
	s.reaches(t, places["alike"], true, "203.0.113.1")
	policy("first", allowing("www.example", "www.other.example"))
	s.domainsInForce(t, ids["first"], 2, 0)
	s.reaches(t, places["first"], false, "203.0.113.1")
	s.resolves(t, places["first"], "www.example", "203.0.113.1")
	s.reaches(t, places["first"], true, "203.0.113.1")
	asked("www.example", 1, 1)
	if n := s.Others[0].Asked(nil) + s.Others[1].Asked(nil); n != 0 {
		t.Errorf("another resolver was asked %d times", n)
	}
}

// TestStaleNames: an answer that is over is none when no server gives another, unless the configuration says so; and then it
// says that of itself, and opens the filter as any other.
func TestStaleNames(t *testing.T) {
	for name, env := range map[string][]string{"by default": nil, "on": {"NETFENCE_DNS_SERVE_STALE=1h"}} {
		t.Run(name, func(t *testing.T) {
			zone := testenv.Zone{Records: []string{"www.example. 1 IN A 203.0.113.1", "never.example. 1 IN A 203.0.113.2"}}
			s := newNamed(t, testenv.VethDevice, zone, append(env, "NETFENCE_DNS_MIN_TTL=1s", "NETFENCE_DNS_GRACE=1s")...)
			s.Policy(t, "names.yaml", allowing("*.example"))
			s.Start(t)
			s.attach(t, s.inside)
			s.resolves(t, s.inside, "www.example", "203.0.113.1")
			s.Upstream.Fail(true)
			testenv.Eventually(t, "the answer and what it opened are over", func() bool {
				a := s.dig(t, s.inside, "www.example")
				return (a.Status == "SERVFAIL" || strings.HasPrefix(a.Extended, "3 (Stale Answer)")) && (len(env) > 0 || !s.opens(t, s.inside, "203.0.113.1"))
			})
			a := s.dig(t, s.inside, "www.example")
			if stale := a.Status == "NOERROR" && sameAddrs(a.Addrs, "203.0.113.1"); stale != (len(env) > 0) {
				t.Errorf("%s", a)
			}
			s.reaches(t, s.inside, len(env) > 0, "203.0.113.1")
			if a := s.dig(t, s.inside, "never.example"); a.Status != "SERVFAIL" {
				t.Errorf("what was never known: %s", a)
			}
			zone.Records[0] = "www.example. 60 IN A 203.0.113.1"
			s.Upstream.Serve(t, zone)
			s.Upstream.Fail(false)
			s.resolves(t, s.inside, "www.example", "203.0.113.1")
			s.reaches(t, s.inside, true, "203.0.113.1")
		})
	}
}
