// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// TestEventsNameTheDenied: what was dropped, by the name that the workload knows it by, and which names were refused.
func TestEventsNameTheDenied(t *testing.T) {
	zone := testenv.Zone{Records: []string{"www.example. 60 IN A 203.0.113.1", "*.bad.example. 60 IN A 203.0.113.2"}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "names.yaml", fmt.Sprintf(`mode: allowlist
allow: [%s]
dns: {allow: [{domain: www.example, ports: [%d/tcp]}, "*.example"], deny: ["*.bad.example"]}
`, alwaysAllowed, otherPort))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		events := s.Follow(t, "--id", id)
		denied := func(addr, reason string, names ...string) {
			t.Helper()
			to := netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort)
			events.Provoke(t, "a denied flow to "+addr, func() {
				p.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: to})
			}, func(e harness.Event) bool {
				f := e.DeniedFlow
				return f != nil && e.ID == id && f.Address == addr && f.Port == echoPort && f.IPProtocol == unix.IPPROTO_UDP &&
					f.Reason == reason && slices.Equal(f.Names, names)
			})
		}
		denied("203.0.113.9", "no-rule")
		denied("203.0.113.1", "no-rule")
		events.Provoke(t, "an allowed name", func() { s.dig(t, p, "www.example") }, func(e harness.Event) bool {
			d := e.DNSDecision
			return d != nil && e.ID == id && d.Domain == "www.example" && d.QueryType == "A" && d.Allowed && slices.Equal(d.Learned, []string{"203.0.113.1"})
		})
		denied("203.0.113.1", "no-rule", "www.example") // on a port that the rule does not name
		events.Provoke(t, "a refused name", func() { s.dig(t, p, "x.bad.example") }, func(e harness.Event) bool {
			d := e.DNSDecision
			return d != nil && e.ID == id && d.Domain == "x.bad.example" && !d.Allowed && strings.Contains(d.Reason, "*.bad.example") && len(d.Learned) == 0
		})
		for _, e := range events.All() {
			if e.ID != id && e.Lost == 0 {
				t.Errorf("an event of another attachment: %+v", e)
			}
		}
	})
}
