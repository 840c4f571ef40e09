// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

func TestBulkUpdateAndBack(t *testing.T) {
	for _, p := range []*policy.Policy{
		richPolicy,
		{Mode: policy.ModeDisabled, DNS: policy.DNS{Mode: policy.DNSDisabled}},
		policy.BlockAll(), // its DNS mode is the zero value, allowlist
	} {
		m, err := wire.BulkUpdate(p, wire.Self())
		if err != nil {
			t.Fatal(err)
		}
		back, warnings, err := wire.PolicyFrom(m)
		if err != nil || len(warnings) > 0 {
			t.Fatalf("%v %q", err, warnings)
		}
		if !reflect.DeepEqual(back, p) {
			t.Errorf("got %+v, want %+v", back, p)
		}
	}
}

// A peer that announced nothing is sent published messages only, and never a rule without what narrows it.
func TestBulkUpdateToPublishedPeer(t *testing.T) {
	rule := func(edit func(*policy.Rule)) *policy.Policy {
		r := policy.Rule{Prefix: netip.MustParsePrefix("10.0.0.0/8")}
		edit(&r)
		return &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{{Prefix: r.Prefix}, r}}
	}
	domain := func(r policy.DomainRule) *policy.Policy {
		return &policy.Policy{DNS: policy.DNS{Deny: []policy.DomainRule{r}}}
	}
	ports := []policy.Ports{{First: 443, Last: 443}}
	for _, tt := range []struct {
		policy  *policy.Policy
		feature wire.Feature
		field   string
	}{
		{rule(func(r *policy.Rule) { r.Ports = ports }), wire.Ports, "allow_cidrs[1].ports"},
		{rule(func(r *policy.Rule) { r.ExpiresAt = time.Unix(1, 0) }), wire.ExpiresAt, "allow_cidrs[1].expires_at"},
		{domain(policy.DomainRule{Domain: "x", Ports: ports}), wire.Ports, "dns.deny_domains[0].ports"},
		{domain(policy.DomainRule{Domain: "x", Private: true}), wire.Private, "dns.deny_domains[0].private"},
		{&policy.Policy{Replies: policy.RepliesDeny}, wire.Replies, "replies"},
		{&policy.Policy{Loopback: policy.LoopbackDeny}, wire.Loopback, "loopback"},
		{&policy.Policy{DNS: policy.DNS{RefuseWith: policy.RefuseRefused}}, wire.RefuseWith, "dns.refuse_with"},
		{&policy.Policy{DNS: policy.DNS{Forward: []policy.ZoneForward{{Zone: "corp", Original: true}}}}, wire.Forward, "dns.forward"},
		{&policy.Policy{Audit: true}, wire.Audit, "audit"},
		{&policy.Policy{RepliesUDP: ports}, wire.RepliesUDP, "replies_udp"},
		{&policy.Policy{Source: []policy.Source{{MAC: [6]byte{2}}}}, wire.Source, "source"},
	} {
		t.Run(tt.field, func(t *testing.T) {
			m, err := wire.BulkUpdate(tt.policy, wire.Peer{})
			var unsupported *wire.UnsupportedError
			if !errors.As(err, &unsupported) || unsupported.Feature != tt.feature || unsupported.Field != tt.field {
				t.Fatalf("got %v, want %s needs %s", err, tt.field, tt.feature)
			}
			if m != nil {
				t.Error("a message beside the error")
			}
			peer := wire.NewPeer([]string{"something new", string(tt.feature)})
			if known := slices.Contains(wire.Features(), string(tt.feature)); peer.Has(tt.feature) != known {
				t.Errorf("Has %v, implemented %v", peer.Has(tt.feature), known)
			} else if _, err := wire.BulkUpdate(tt.policy, peer); (err == nil) != known {
				t.Errorf("to a peer that announced it: %v", err)
			}
		})
	}

	published := rule(func(r *policy.Rule) { r.TTL = time.Minute })
	published.DNS = policy.DNS{Mode: policy.DNSProxy, Allow: []policy.DomainRule{{Domain: "*.x", Force: true}}}
	m, err := wire.BulkUpdate(published, wire.Peer{})
	if err != nil {
		t.Fatal(err)
	}
	want := &netfencev1.BulkUpdate{
		Mode: netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST,
		AllowCidrs: []*netfencev1.CIDREntry{
			{Cidr: "10.0.0.0/8"},
			{Cidr: "10.0.0.0/8", Ttl: m.GetAllowCidrs()[1].GetTtl()},
		},
		Dns: &netfencev1.DnsConfig{
			Mode:         netfencev1.DnsMode_DNS_MODE_PROXY,
			AllowDomains: []*netfencev1.DomainEntry{{Domain: "*.x"}},
		},
	}
	if !proto.Equal(m, want) || m.GetAllowCidrs()[1].GetTtl().AsDuration() != time.Minute {
		t.Errorf("got %v, want %v", m, want)
	}
}

// Every value of package policy has one in the protocol, and comes back as itself.
func TestModes(t *testing.T) {
	for m := policy.ModeBlockAll; m <= policy.ModeDisabled; m++ {
		if back, err := wire.ModeFrom(wire.Mode(m)); err != nil || back != m {
			t.Errorf("%v: %v, %v", m, back, err)
		}
	}
	for m := policy.DNSAllowlist; m <= policy.DNSDisabled; m++ {
		if back, err := wire.DNSModeFrom(wire.DNSMode(m)); err != nil || back != m {
			t.Errorf("%v: %v, %v", m, back, err)
		}
	}
	if _, err := wire.ModeFrom(0); err == nil {
		t.Error("mode UNSPECIFIED passes")
	}
	if _, err := wire.DNSModeFrom(0); err == nil {
		t.Error("DNS mode UNSPECIFIED passes")
	}
}
