// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

// Whole is a message that holds a whole policy: BulkUpdate or SubscribedAck.
type Whole interface {
	proto.Message
	GetMode() netfencev1.PolicyMode
	GetAllowCidrs() []*netfencev1.CIDREntry
	GetDenyCidrs() []*netfencev1.CIDREntry
	GetDns() *netfencev1.DnsConfig
	GetAudit() bool
	GetReplies() netfencev1.Replies
	GetRepliesUdp() []*netfencev1.PortRange
	GetLoopback() netfencev1.Loopback
	GetSource() []string
}

// PolicyFrom reads a whole policy. The warnings say what was adjusted: host bits that were masked. The error is a
// *RefusedError whose paths begin at the message. Numbers of rules are not bounded here; policy.Validate does that.
func PolicyFrom(m Whole) (*policy.Policy, []string, error) {
	var r reader
	r.unknown(m.ProtoReflect())
	p := r.whole(m)
	warnings, err := r.result()
	if err != nil {
		return nil, nil, err
	}
	return p, warnings, nil
}

func (r *reader) whole(m Whole) *policy.Policy {
	return &policy.Policy{
		Mode:       readEnum(r, "mode", modes, m.GetMode()),
		Audit:      m.GetAudit(),
		Allow:      r.rules("allow_cidrs", m.GetAllowCidrs()),
		Deny:       r.rules("deny_cidrs", m.GetDenyCidrs()),
		Replies:    readEnum(r, "replies", replies, m.GetReplies()),
		RepliesUDP: r.ports("replies_udp", m.GetRepliesUdp()),
		Loopback:   readEnum(r, "loopback", loopbacks, m.GetLoopback()),
		Source:     readTexts(r, "source", m.GetSource(), "an address, a prefix or a MAC", policy.ParseSource),
		DNS:        r.dns(m.GetDns()),
	}
}

func (r *reader) rules(field string, entries []*netfencev1.CIDREntry) []policy.Rule {
	if len(entries) == 0 {
		return nil
	}
	rules := make([]policy.Rule, len(entries))
	for i, entry := range entries {
		r.enter(field, i)
		rules[i] = r.rule(entry)
		r.leave()
	}
	return rules
}

func (r *reader) rule(m *netfencev1.CIDREntry) policy.Rule {
	return policy.Rule{
		Prefix:    r.prefix("cidr", m.GetCidr()),
		Ports:     r.ports("ports", m.GetPorts()),
		TTL:       r.ttl(m.GetTtl()),
		ExpiresAt: r.expiresAt(m.GetExpiresAt()),
	}
}

func (r *reader) prefix(field, text string) netip.Prefix {
	prefix, warning, err := policy.ParsePrefix(text, policy.MaskHostBits)
	if err != nil {
		r.refuse(field, text, "an address or prefix: "+err.Error())
	}
	if warning != "" {
		r.warn(field, warning)
	}
	return prefix
}

// ttl reads a life; zero is as good as unset, for callers that always fill the field.
func (r *reader) ttl(m *durationpb.Duration) time.Duration {
	if m == nil {
		return 0
	}
	if m.CheckValid() != nil || m.AsDuration() < 0 {
		r.refuse("ttl", fmt.Sprintf("%ds %dns", m.GetSeconds(), m.GetNanos()), "a duration that is not negative")
		return 0
	}
	return m.AsDuration()
}

// expiresAt refuses what lies before 1970: the zero time.Time, 0001-01-01, would read as "never".
func (r *reader) expiresAt(m *timestamppb.Timestamp) time.Time {
	if m == nil {
		return time.Time{}
	}
	if m.CheckValid() != nil || m.GetSeconds() <= 0 {
		r.refuse("expires_at", fmt.Sprintf("%ds %dns", m.GetSeconds(), m.GetNanos()), "a time after 1970")
		return time.Time{}
	}
	return m.AsTime()
}

func (r *reader) ports(field string, ranges []*netfencev1.PortRange) []policy.Ports {
	if len(ranges) == 0 {
		return nil
	}
	ports := make([]policy.Ports, len(ranges))
	for i, m := range ranges {
		r.enter(field, i)
		ports[i] = r.portRange(m)
		r.leave()
	}
	return ports
}

// PortsFrom reads ports that stand outside a policy. The error is a *RefusedError.
func PortsFrom(ranges []*netfencev1.PortRange) ([]policy.Ports, error) {
	var r reader
	ports := r.ports("ports", ranges)
	_, err := r.result()
	return ports, err
}

func (r *reader) portRange(m *netfencev1.PortRange) policy.Ports {
	first, last := m.GetFirst(), m.GetLast()
	if last == 0 {
		last = first
	}
	if last == 0 || last > math.MaxUint16 || first > last {
		r.refuse("", fmt.Sprintf("%d-%d", first, last), "ports from 0 to 65535, first not above last, not 0 alone")
		return policy.Ports{}
	}
	return policy.Ports{
		First:    uint16(first),
		Last:     uint16(last),
		Protocol: readEnum(r, "protocol", protocols, m.GetProtocol()),
	}
}

// dns reads the DNS part; unset means disabled.
func (r *reader) dns(m *netfencev1.DnsConfig) policy.DNS {
	if m == nil {
		return policy.DNS{Mode: policy.DNSDisabled}
	}
	r.enter("dns", -1)
	defer r.leave()
	return policy.DNS{
		Mode:       readEnum(r, "mode", dnsModes, m.GetMode()),
		Allow:      r.domains("allow_domains", m.GetAllowDomains(), policy.Allow),
		Deny:       r.domains("deny_domains", m.GetDenyDomains(), policy.Deny),
		Upstreams:  readTexts(r, "upstream_servers", m.GetUpstreamServers(), "a server", policy.ParseServer),
		RefuseWith: readEnum(r, "refuse_with", refuseCodes, m.GetRefuseWith()),
		Forward:    r.forwards(m.GetForward()),
	}
}

func (r *reader) domains(field string, entries []*netfencev1.DomainEntry, list policy.Action) []policy.DomainRule {
	if len(entries) == 0 {
		return nil
	}
	rules := make([]policy.DomainRule, len(entries))
	for i, entry := range entries {
		r.enter(field, i)
		rules[i] = r.domain(entry, list)
		r.leave()
	}
	return rules
}

// domain reads a domain rule. Force is set: published peers can not say it, and a control plane means what it sends.
func (r *reader) domain(m *netfencev1.DomainEntry, list policy.Action) policy.DomainRule {
	if n := len(m.GetPorts()); n > 0 && list == policy.Deny {
		r.refuse("ports", n, "none: a denied name has no addresses to bind ports to (deny the addresses)")
	}
	name := r.name("domain", m.GetDomain())
	return policy.DomainRule{
		Domain:            name,
		IncludeSubdomains: m.GetIncludeSubdomains() && !strings.HasPrefix(name, "*"),
		Ports:             r.ports("ports", m.GetPorts()),
		Private:           m.GetPrivate(),
		Force:             true,
	}
}

func (r *reader) name(field, text string) string {
	name, err := policy.ParseDomain(text)
	if err != nil {
		r.refuse(field, text, "a name: "+err.Error())
	}
	return name
}

func (r *reader) forwards(zones []*netfencev1.ZoneForward) []policy.ZoneForward {
	if len(zones) == 0 {
		return nil
	}
	forwards := make([]policy.ZoneForward, len(zones))
	for i, m := range zones {
		r.enter("forward", i)
		forwards[i] = r.forward(m)
		r.leave()
	}
	return forwards
}

func (r *reader) forward(m *netfencev1.ZoneForward) policy.ZoneForward {
	zone := r.name("zone", m.GetZone())
	if strings.HasPrefix(zone, "*") {
		r.refuse("zone", m.GetZone(), "a zone, which has all names below it; no wildcard")
	}
	if m.GetOriginal() == (len(m.GetTo()) > 0) {
		r.refuse("to", m.GetTo(), "servers, or original, and not both")
	}
	return policy.ZoneForward{
		Zone:     zone,
		To:       readTexts(r, "to", m.GetTo(), "a server", policy.ParseServer),
		Original: m.GetOriginal(),
	}
}

func readEnum[P, W comparable](r *reader, field string, pairs []pair[P, W], v W) P {
	p, err := decode(pairs, v)
	if err != nil {
		r.refuse(field, v, err.Error())
	}
	return p
}

func readTexts[T any](r *reader, field string, texts []string, kind string, parse func(string) (T, error)) []T {
	if len(texts) == 0 {
		return nil
	}
	values := make([]T, len(texts))
	for i, text := range texts {
		v, err := parse(text)
		if err != nil {
			r.enter(field, i)
			r.refuse("", text, kind+": "+err.Error())
			r.leave()
		}
		values[i] = v
	}
	return values
}
