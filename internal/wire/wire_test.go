// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

func bulk(t testing.TB, text string) *netfencev1.BulkUpdate {
	t.Helper()
	m := new(netfencev1.BulkUpdate)
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func command(t *testing.T, text string) *netfencev1.ControlCommand {
	t.Helper()
	m := new(netfencev1.ControlCommand)
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// rich is a policy with every field that this version acts upon.
const rich = `
	mode: POLICY_MODE_ALLOWLIST
	allow_cidrs { cidr: "10.0.0.0/8" }
	allow_cidrs { cidr: "::ffff:192.0.2.1" ttl { seconds: 600 } ports { first: 443 protocol: PROTOCOL_TCP } }
	allow_cidrs { cidr: "2001:db8::/32" ports { first: 0 last: 65535 } ports { first: 53 protocol: PROTOCOL_UDP } }
	deny_cidrs { cidr: "10.0.9.0/24" expires_at { seconds: 2000000000 } }
	dns {
		mode: DNS_MODE_DENYLIST
		allow_domains { domain: "PyPI.org." include_subdomains: true ports { first: 443 } }
		allow_domains { domain: "*.x.example" include_subdomains: true }
		deny_domains { domain: "co.uk" private: true }
		upstream_servers: "192.0.2.53"
		refuse_with: REFUSE_CODE_REFUSED
		forward { zone: "cluster.local" to: "[2001:db8::53]:5353" }
		forward { zone: "corp" original: true }
	}
	replies: REPLIES_DENY
	loopback: LOOPBACK_ALLOW`

var richPolicy = &policy.Policy{
	Mode: policy.ModeAllowlist,
	Allow: []policy.Rule{
		{Prefix: netip.MustParsePrefix("10.0.0.0/8")},
		{
			Prefix: netip.MustParsePrefix("192.0.2.1/32"), TTL: 10 * time.Minute,
			Ports: []policy.Ports{{First: 443, Last: 443, Protocol: policy.TCP}},
		},
		{
			Prefix: netip.MustParsePrefix("2001:db8::/32"),
			Ports:  []policy.Ports{{First: 0, Last: 65535}, {First: 53, Last: 53, Protocol: policy.UDP}},
		},
	},
	Deny: []policy.Rule{
		{Prefix: netip.MustParsePrefix("10.0.9.0/24"), ExpiresAt: time.Unix(2000000000, 0).UTC()},
	},
	DNS: policy.DNS{
		Mode: policy.DNSDenylist,
		Allow: []policy.DomainRule{
			{Domain: "pypi.org", IncludeSubdomains: true, Ports: []policy.Ports{{First: 443, Last: 443}}, Force: true},
			{Domain: "*.x.example", Force: true},
		},
		Deny:       []policy.DomainRule{{Domain: "co.uk", Private: true, Force: true}},
		Upstreams:  []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")},
		RefuseWith: policy.RefuseRefused,
		Forward: []policy.ZoneForward{
			{Zone: "cluster.local", To: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::53]:5353")}},
			{Zone: "corp", Original: true},
		},
	},
	Replies:  policy.RepliesDeny,
	Loopback: policy.LoopbackAllow,
}

func TestPolicyFrom(t *testing.T) {
	for _, tt := range []struct {
		name, message string
		want          *policy.Policy
		warnings      []string
	}{
		{"everything", rich, richPolicy, nil},
		{"unset dns is disabled", `mode: POLICY_MODE_DENYLIST`,
			&policy.Policy{Mode: policy.ModeDenylist, DNS: policy.DNS{Mode: policy.DNSDisabled}}, nil},
		{"host bits are masked", `mode: POLICY_MODE_BLOCK_ALL deny_cidrs { cidr: "10.1.2.3/8" }`,
			&policy.Policy{
				Mode: policy.ModeBlockAll,
				Deny: []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
				DNS:  policy.DNS{Mode: policy.DNSDisabled},
			},
			[]string{"deny_cidrs[0].cidr: prefix 10.1.2.3/8 has host bits set; taken as 10.0.0.0/8"}},
		{"values that mean unset", `mode: POLICY_MODE_DISABLED replies: REPLIES_ALLOW loopback: LOOPBACK_OWN
			allow_cidrs { cidr: "192.0.2.0/24" ttl {} } dns { mode: DNS_MODE_PROXY refuse_with: REFUSE_CODE_NXDOMAIN }`,
			&policy.Policy{
				Mode:  policy.ModeDisabled,
				Allow: []policy.Rule{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}},
				DNS:   policy.DNS{Mode: policy.DNSProxy, RefuseWith: policy.RefuseNXDomain},
			}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := bulk(t, tt.message)
			for _, whole := range []wire.Whole{m, wire.SubscribedAck(m)} {
				got, warnings, err := wire.PolicyFrom(whole)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(got, tt.want) {
					t.Errorf("%T: got %+v, want %+v", whole, got, tt.want)
				}
				if !slices.Equal(warnings, tt.warnings) {
					t.Errorf("%T: warnings %q, want %q", whole, warnings, tt.warnings)
				}
			}
		})
	}
}

func TestPolicyFromRefuses(t *testing.T) {
	const ok = `mode: POLICY_MODE_ALLOWLIST `
	for _, tt := range []struct{ message, field, expected string }{
		{``, "mode", "one of POLICY_MODE_BLOCK_ALL, "},
		{`mode: 77`, "mode", "one of POLICY_MODE_BLOCK_ALL, "},
		{ok + `replies: 9`, "replies", "one of "},
		{ok + `loopback: 9`, "loopback", "one of "},
		{ok + `dns {}`, "dns.mode", "one of DNS_MODE_ALLOWLIST, "},
		{ok + `dns { mode: 9 }`, "dns.mode", "one of "},
		{ok + `dns { mode: DNS_MODE_PROXY refuse_with: 9 }`, "dns.refuse_with", "one of "},
		{ok + `allow_cidrs { cidr: "10.0.0.0/8" } allow_cidrs { cidr: "10.0.0.0/33" }`, "allow_cidrs[1].cidr", "an address or prefix: "},
		{ok + `deny_cidrs {}`, "deny_cidrs[0].cidr", "an address or prefix: "},
		{ok + `allow_cidrs { cidr: "fe80::1%eth0" }`, "allow_cidrs[0].cidr", "an address or prefix: "},
		{ok + `allow_cidrs { cidr: "::/0" ttl { seconds: -1 } }`, "allow_cidrs[0].ttl", "a duration that is not negative"},
		{ok + `allow_cidrs { cidr: "::/0" ttl { seconds: 1 nanos: -1 } }`, "allow_cidrs[0].ttl", "a duration that is not negative"},
		{ok + `allow_cidrs { cidr: "::/0" expires_at {} }`, "allow_cidrs[0].expires_at", "a time after 1970"},
		{ok + `allow_cidrs { cidr: "::/0" expires_at { seconds: -62135596800 } }`, "allow_cidrs[0].expires_at", "a time after 1970"},
		{ok + `allow_cidrs { cidr: "::/0" ports {} }`, "allow_cidrs[0].ports[0]", "ports from 0 to 65535"},
		{ok + `allow_cidrs { cidr: "::/0" ports { first: 2 last: 1 } }`, "allow_cidrs[0].ports[0]", "ports from 0 to 65535"},
		{ok + `allow_cidrs { cidr: "::/0" ports { first: 65536 } }`, "allow_cidrs[0].ports[0]", "ports from 0 to 65535"},
		{ok + `allow_cidrs { cidr: "::/0" ports { first: 1 last: 65537 } }`, "allow_cidrs[0].ports[0]", "ports from 0 to 65535"},
		{ok + `allow_cidrs { cidr: "::/0" ports { first: 1 protocol: 132 } }`, "allow_cidrs[0].ports[0].protocol", "one of "},
		{ok + `dns { mode: DNS_MODE_PROXY allow_domains { domain: "a..b" } }`, "dns.allow_domains[0].domain", "a name: "},
		{ok + `dns { mode: DNS_MODE_PROXY deny_domains { domain: "x.*.y" } }`, "dns.deny_domains[0].domain", "a name: "},
		{ok + `dns { mode: DNS_MODE_PROXY deny_domains {} }`, "dns.deny_domains[0].domain", "a name: "},
		{ok + `dns { mode: DNS_MODE_PROXY upstream_servers: "192.0.2.53" upstream_servers: "ns1" }`, "dns.upstream_servers[1]", "a server: "},
		{ok + `dns { mode: DNS_MODE_PROXY forward { zone: "corp" } }`, "dns.forward[0].to", "servers, or original"},
		{ok + `dns { mode: DNS_MODE_PROXY forward { zone: "corp" to: "192.0.2.1" original: true } }`, "dns.forward[0].to", "servers, or original"},
		{ok + `dns { mode: DNS_MODE_PROXY forward { zone: "*.corp" original: true } }`, "dns.forward[0].zone", "a zone"},
	} {
		t.Run(tt.message, func(t *testing.T) {
			m := bulk(t, tt.message)
			for _, whole := range []wire.Whole{m, wire.SubscribedAck(m)} {
				p, _, err := wire.PolicyFrom(whole)
				refused := wantRefused(t, err)
				if p != nil {
					t.Errorf("%T: a policy beside the refusal", whole)
				}
				first := refused.Violations[0]
				if first.Field != tt.field || !strings.HasPrefix(first.Expected, tt.expected) {
					t.Errorf("%T: got %v, want %s: %s", whole, err, tt.field, tt.expected)
				}
				if len(refused.Violations) != 1 {
					t.Errorf("%T: got %+v, want one violation of something implemented", whole, refused)
				}
			}
		})
	}
}

// A field of a newer protocol may narrow what we would apply without it, wherever it stands.
func TestUnknownFieldsAreRefused(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	cmd := command(t, `bulk_update { `+rich+` }`)
	places := map[string]proto.Message{
		"":                                          cmd,
		"bulk_update":                               cmd.GetBulkUpdate(),
		"bulk_update.allow_cidrs[1]":                cmd.GetBulkUpdate().AllowCidrs[1],
		"bulk_update.allow_cidrs[1].ttl":            cmd.GetBulkUpdate().AllowCidrs[1].Ttl,
		"bulk_update.allow_cidrs[2].ports[1]":       cmd.GetBulkUpdate().AllowCidrs[2].Ports[1],
		"bulk_update.deny_cidrs[0].expires_at":      cmd.GetBulkUpdate().DenyCidrs[0].ExpiresAt,
		"bulk_update.dns":                           cmd.GetBulkUpdate().Dns,
		"bulk_update.dns.allow_domains[0]":          cmd.GetBulkUpdate().Dns.AllowDomains[0],
		"bulk_update.dns.deny_domains[0]":           cmd.GetBulkUpdate().Dns.DenyDomains[0],
		"bulk_update.dns.forward[1]":                cmd.GetBulkUpdate().Dns.Forward[1],
		"bulk_update.dns.allow_domains[0].ports[0]": cmd.GetBulkUpdate().Dns.AllowDomains[0].Ports[0],
	}
	if _, err := wire.ChangeFrom(cmd); err != nil {
		t.Fatal(err)
	}
	for place, m := range places {
		m.ProtoReflect().SetUnknown(unknown)
		_, err := wire.ChangeFrom(cmd)
		m.ProtoReflect().SetUnknown(nil)
		refused := wantRefused(t, err)
		want := wire.Violation{Field: place, Value: "field 999", Expected: "only fields that this version knows"}
		if !slices.Equal(refused.Violations, []wire.Violation{want}) {
			t.Errorf("at %q: got %v", place, err)
		}
	}
}

// An answer stays small however much was wrong, and never breaks a character.
func TestRefusalIsBounded(t *testing.T) {
	m := &netfencev1.BulkUpdate{Mode: netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST}
	for range 1000 {
		m.AllowCidrs = append(m.AllowCidrs, &netfencev1.CIDREntry{Cidr: strings.Repeat("ü", 10_000)})
	}
	_, _, err := wire.PolicyFrom(m)
	refused := wantRefused(t, err)
	if len(refused.Violations) != 32 || refused.More != 968 {
		t.Errorf("got %d and %d more, want 32 and 968", len(refused.Violations), refused.More)
	}
	result := &netfencev1.CommandResult{Violations: wire.CommandViolations(nil, err)}
	if b, err := proto.Marshal(result); err != nil || len(b) > 32*640 {
		t.Errorf("result of %d bytes, %v", len(b), err)
	}
	if len(err.Error()) > 1024 {
		t.Errorf("error text of %d bytes", len(err.Error()))
	}
}

func TestWarningsAreBounded(t *testing.T) {
	m := &netfencev1.BulkUpdate{Mode: netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST}
	for range 40 {
		m.AllowCidrs = append(m.AllowCidrs, &netfencev1.CIDREntry{Cidr: "10.0.0.1/8"})
	}
	_, warnings, err := wire.PolicyFrom(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 33 || warnings[32] != "and 8 more" {
		t.Errorf("got %d warnings, last %q", len(warnings), warnings[len(warnings)-1])
	}
}

func wantRefused(t *testing.T, err error) *wire.RefusedError {
	t.Helper()
	var refused *wire.RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("got %v, want a refusal", err)
	}
	return refused
}
