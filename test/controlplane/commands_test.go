// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/netfence/netfence/policy"
	"github.com/netfence/netfence/test/harness"
)

// Each command changes what it names and nothing else, as `policy show` tells.
func TestEveryCommand(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromPublished)
	id := attachCgroup(t, d, p)
	for _, step := range []struct{ command, want string }{
		{`"allow_cidr": {"cidr": "10.0.0.0/8"}`, "allowlist, allow 10.0.0.0/8, dns disabled"},
		{`"allow_cidr": {"cidr": "2001:db8::1"}`, "allowlist, allow 10.0.0.0/8 2001:db8::1/128, dns disabled"},
		{`"allow_cidr": {"cidr": "192.0.2.9/24", "ttl": "600s"}`,
			"allowlist, allow 10.0.0.0/8 2001:db8::1/128 192.0.2.0/24 (10m0s), dns disabled"},
		{`"deny_cidr": {"cidr": "10.0.9.0/24"}`,
			"allowlist, allow 10.0.0.0/8 2001:db8::1/128 192.0.2.0/24 (10m0s), deny 10.0.9.0/24, dns disabled"},
		{`"deny_cidr": {"cidr": "10.0.0.0/8"}`,
			"allowlist, allow 10.0.0.0/8 2001:db8::1/128 192.0.2.0/24 (10m0s), deny 10.0.9.0/24 10.0.0.0/8, dns disabled"},
		// From both lists.
		{`"remove_cidr": "10.0.0.0/8"`,
			"allowlist, allow 2001:db8::1/128 192.0.2.0/24 (10m0s), deny 10.0.9.0/24, dns disabled"},
		{`"set_mode": {"mode": "POLICY_MODE_DENYLIST"}`,
			"denylist, allow 2001:db8::1/128 192.0.2.0/24 (10m0s), deny 10.0.9.0/24, dns disabled"},
		{`"set_mode": {"mode": "POLICY_MODE_DISABLED"}`,
			"disabled, allow 2001:db8::1/128 192.0.2.0/24 (10m0s), deny 10.0.9.0/24, dns disabled"},
		{`"set_mode": {"mode": "POLICY_MODE_BLOCK_ALL"}`,
			"block-all, allow 2001:db8::1/128 192.0.2.0/24 (10m0s), deny 10.0.9.0/24, dns disabled"},
		{`"bulk_update": {"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}],
			"deny_cidrs": [{"cidr": "198.51.100.7"}], "dns": {"mode": "DNS_MODE_DENYLIST", "upstream_servers": ["192.0.2.53"],
			"allow_domains": [{"domain": "a.example"}], "deny_domains": [{"domain": "B.Example.", "include_subdomains": true}]}}`,
			"allowlist, allow 198.51.100.0/24, deny 198.51.100.7/32, dns denylist, allow a.example, deny b.example and below, upstreams 192.0.2.53:53"},
		{`"set_dns_mode": {"mode": "DNS_MODE_ALLOWLIST"}`,
			"allowlist, allow 198.51.100.0/24, deny 198.51.100.7/32, dns allowlist, allow a.example, deny b.example and below, upstreams 192.0.2.53:53"},
		{`"allow_domain": {"domain": "*.c.example"}`,
			"allowlist, allow 198.51.100.0/24, deny 198.51.100.7/32, dns allowlist, allow a.example *.c.example, deny b.example and below, upstreams 192.0.2.53:53"},
		{`"deny_domain": {"domain": "x.c.example"}`,
			"allowlist, allow 198.51.100.0/24, deny 198.51.100.7/32, dns allowlist, allow a.example *.c.example, deny b.example and below x.c.example, upstreams 192.0.2.53:53"},
		{`"remove_domain": "b.example"`,
			"allowlist, allow 198.51.100.0/24, deny 198.51.100.7/32, dns allowlist, allow a.example *.c.example, deny x.c.example, upstreams 192.0.2.53:53"},
		{`"set_dns_mode": {"mode": "DNS_MODE_PROXY"}`,
			"allowlist, allow 198.51.100.0/24, deny 198.51.100.7/32, dns proxy, allow a.example *.c.example, deny x.c.example, upstreams 192.0.2.53:53"},
		// An acknowledgement of what is acknowledged already is a BulkUpdate; what it does not say is gone.
		{`"subscribed_ack": {"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "203.0.113.0/24"}]}`,
			"allowlist, allow 203.0.113.0/24, dns disabled"},
	} {
		p.Send(`{"id": %q, %s}`, id, step.command)
		await(t, d, id, step.command, func(s harness.Shown) bool { return words(s.Policy) == step.want })
	}
	// SyncAck is about the stream: it changes nothing, and again less.
	p.Send(`{"sync_ack": {}}`)
	p.Send(`{"id": %q, "allow_cidr": {"cidr": "192.0.2.1"}}`, id)
	const want = "allowlist, allow 203.0.113.0/24 192.0.2.1/32, dns disabled"
	await(t, d, id, "SyncAck", func(s harness.Shown) bool { return words(s.Policy) == want })
}

// words is a policy in one line.
func words(p *policy.Policy) string {
	rules := func(name string, list []policy.Rule) string {
		text := ""
		for _, r := range list {
			text += " " + r.Prefix.String()
			if r.TTL != 0 {
				text += fmt.Sprintf(" (%s)", r.TTL)
			}
		}
		return say(name, text)
	}
	domains := func(name string, list []policy.DomainRule) string {
		text := ""
		for _, r := range list {
			text += " " + r.Domain
			if r.IncludeSubdomains {
				text += " and below"
			}
		}
		return say(name, text)
	}
	text := p.Mode.String() + rules("allow", p.Allow) + rules("deny", p.Deny) +
		", dns " + p.DNS.Mode.String() + domains("allow", p.DNS.Allow) + domains("deny", p.DNS.Deny)
	for _, server := range p.DNS.Upstreams {
		text += ", upstreams " + server.String()
	}
	return text
}

func say(name, list string) string {
	if strings.TrimSpace(list) == "" {
		return ""
	}
	return ", " + name + list
}
