// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// While BulkUpdates replace the policy, every packet sees one of them whole: what all of them allow never fails, and
// what none of them allows never passes.
func TestBulkUpdateIsAtomic(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished)
	// In turn by a rule of its own, by the covering one, and by the mode; never to .66.
	updates := []string{
		`{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "203.0.113.1"}]}`,
		`{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "203.0.113.0/24"}], "deny_cidrs": [{"cidr": "203.0.113.66"}]}`,
		`{"mode": "POLICY_MODE_DENYLIST", "deny_cidrs": [{"cidr": "203.0.113.66"}]}`,
	}
	id := attach(t, d, p, updates[0], "--interface", w.Link)
	arrived := testenv.Observe(t, w.Outside, "eth0")
	yes, no := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.66")
	stopYes := workload.Flood(t, netip.AddrPortFrom(yes, 9))
	stopNo := workload.Flood(t, netip.AddrPortFrom(no, 9))

	for i := range 60 {
		p.Send(`{"id": %q, "bulk_update": %s}`, id, updates[i%len(updates)])
	}
	// Commands for one attachment are applied in order, so this one is the last.
	p.Send(`{"id": %q, "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": %q}, {"cidr": "192.0.2.77"}]}}`, id, yes)
	last := fmt.Sprintf("allowlist, allow %s/32 192.0.2.77/32, dns disabled", yes)
	await(t, d, id, "last update", func(s harness.Shown) bool { return words(s.Policy) == last })
	sent := stopYes().Sent
	if stopNo().Sent == 0 {
		t.Error("no packet was sent to the denied address")
	}
	arrived.Await(t, sent, testenv.To(yes))
	if seen := arrived.Sum(t, testenv.To(no)); seen.Count != 0 {
		t.Errorf("%d packets went to %s, which no policy allowed", seen.Count, no)
	}
}
