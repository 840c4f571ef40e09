// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// A command that cannot be taken whole changes nothing, and status says why.
func TestRefusedCommand(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromPublished)
	id := attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "10.0.0.0/8"}],
		"dns": {"mode": "DNS_MODE_ALLOWLIST", "allow_domains": [{"domain": "a.example"}]}}`, "--cgroup", testenv.NewCgroup(t).Path)
	const before = "allowlist, allow 10.0.0.0/8, dns allowlist, allow a.example"
	for command, problem := range map[string]string{
		`"set_mode": {}`:                                       "set_mode.mode",
		`"set_mode": {"mode": 9}`:                              "set_mode.mode",
		`"set_dns_mode": {}`:                                   "set_dns_mode.mode",
		`"allow_cidr": {}`:                                     "allow_cidr.cidr",
		`"deny_cidr": {"cidr":"x"}`:                            "deny_cidr.cidr",
		`"remove_cidr": "10.0.0"`:                              "remove_cidr",
		`"allow_domain": {}`:                                   "allow_domain.domain",
		`"deny_domain": {"domain": "a..b"}`:                    "deny_domain.domain",
		`"remove_domain": "-"`:                                 "remove_domain",
		`"allow_cidr": {"cidr": "192.0.2.0/24", "ttl": "-1s"}`: "allow_cidr.ttl",
		// One bad rule in the middle, and the good ones around it do not count.
		`"bulk_update": {"mode": "POLICY_MODE_DENYLIST",
			"allow_cidrs": [{"cidr": "192.0.2.0/24"}, {"cidr": "192.0.2.0/33"}, {"cidr": "198.51.100.0/24"}]}`: "bulk_update.allow_cidrs[1].cidr",
		`"bulk_update": {"allow_cidrs": [{"cidr": "192.0.2.0/24"}]}`: "bulk_update.mode",
		`"bulk_update": {"mode": "POLICY_MODE_DENYLIST", "dns": {}}`: "bulk_update.dns.mode",
		`"bulk_update": {"mode": "POLICY_MODE_DENYLIST",
			"dns": {"mode": "DNS_MODE_DISABLED", "upstream_servers": ["no server"]}}`: "bulk_update.dns.upstream_servers[0]",
	} {
		p.Send(`{"id": %q, %s}`, id, command)
		testenv.Eventually(t, "refusal of "+command, func() bool {
			return slices.ContainsFunc(d.Status(t).Problems, func(text string) bool {
				return strings.Contains(text, id) && strings.Contains(text, problem+": ")
			})
		})
		shown := d.Show(t, id)
		if got := words(shown.Policy); got != before {
			t.Errorf("%s made it %s", command, got)
		}
		if !strings.Contains(shown.LastError, problem) {
			t.Errorf("%s: policy show has %q", command, shown.LastError)
		}
	}
	// A good one is taken after them as ever.
	p.Send(`{"id": %q, "set_mode": {"mode": "POLICY_MODE_DENYLIST"}}`, id)
	await(t, d, id, "a good command", func(s harness.Shown) bool { return s.Attachment.Mode == "denylist" })
}

// There is nobody to tell but the control plane.
func TestCommandForUnknownID(t *testing.T) {
	t.Parallel()
	_, p := start(t, nil, builtFromPublished)
	const id = "0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2"
	for _, command := range []string{
		`"set_mode": {"mode": "POLICY_MODE_DISABLED"}`,
		`"bulk_update": {"mode": "POLICY_MODE_DISABLED"}`,
		`"subscribed_ack": {"mode": "POLICY_MODE_DISABLED"}`,
		`"remove_cidr": "10.0.0.0/8"`,
	} {
		p.Send(`{"id": %q, %s}`, id, command)
		if got := p.Unsubscribed(); got.ID != id || got.Reason != reasonError || got.Error == "" {
			t.Errorf("%s: got %+v, want ERROR for the id", command, got)
		}
	}
}
