// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// TestRuleExpires in the kernel, with no daemon alive, at the time that counts from its first application: sending it
// again does not renew it.
func TestRuleExpires(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	const ttl = 6 * time.Second
	rules := fmt.Sprintf("mode: allowlist\nallow: [%s, 203.0.113.10, {cidr: 203.0.113.9, ttl: %s}, {cidr: \"2001:db8:200::9\", ttl: %[2]s}]\n", alwaysAllowed, ttl)
	s.Policy(t, "policy.yaml", rules)
	s.Start(t)
	before := testenv.Monotonic()
	id := s.Attach(t, "--interface", s.Link)
	after := testenv.Monotonic()

	expiring := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:9"), netip.MustParseAddrPort("[2001:db8:200::9]:9")}
	lasting := netip.MustParseAddrPort("203.0.113.10:9")
	var stops []func() testenv.Outcome
	for _, to := range append(expiring, lasting) {
		stops = append(stops, s.Inside.Flood(t, to))
		s.Arrived.Await(t, 1, udp(to))
	}
	s.Policy(t, "policy.yaml", rules+"deny: [192.0.2.99]\n")
	testenv.Eventually(t, "the policy sent again", func() bool { return len(s.Show(t, id).Policy.Deny) == 1 })
	s.Kill(t)
	testenv.Eventually(t, "later packets to the address that lasts", func() bool {
		return s.Arrived.Sum(t, udp(lasting)).LastSent > after+ttl+100*time.Millisecond
	})
	for _, stop := range stops {
		stop()
	}
	s.settle(t, s.Inside)
	for _, to := range expiring {
		// The flood pauses at most while the machine is busy with something else.
		if last := s.Arrived.Sum(t, udp(to)).LastSent; last > after+ttl || last < before+ttl/2 {
			t.Errorf("%s: the last packet that passed was sent %s after the rule came into force, want %s", to, last-before, ttl)
		}
	}
}
