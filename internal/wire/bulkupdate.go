// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

// BulkUpdate writes a policy for a peer. A policy that needs a feature which the peer did not announce is not sent at
// all: the error is an *UnsupportedError. Deadlines are not written: they are the receiver's, on its own clock.
func BulkUpdate(p *policy.Policy, to Peer) (*netfencev1.BulkUpdate, error) {
	m, needs := Write(p)
	for i := range needs {
		if !to.Has(needs[i].Feature) {
			return nil, &needs[i]
		}
	}
	return m, nil
}

// Write writes a policy for whoever has the features that it needs, each with the first field that needs it.
func Write(p *policy.Policy) (m *netfencev1.BulkUpdate, needs []UnsupportedError) {
	var w writer
	m = &netfencev1.BulkUpdate{
		Mode:       Mode(p.Mode),
		AllowCidrs: w.rules("allow_cidrs", p.Allow),
		DenyCidrs:  w.rules("deny_cidrs", p.Deny),
		Dns:        w.dns(&p.DNS),
		Audit:      p.Audit,
		Replies:    encode(replies, p.Replies),
		RepliesUdp: PortRanges(p.RepliesUDP),
		Loopback:   encode(loopbacks, p.Loopback),
		Source:     texts(p.Source, policy.Source.String),
	}
	w.needs(Audit, "audit", -1, "", m.Audit)
	w.needs(Replies, "replies", -1, "", m.Replies != netfencev1.Replies_REPLIES_UNSPECIFIED)
	w.needs(RepliesUDP, "replies_udp", -1, "", len(m.RepliesUdp) > 0)
	w.needs(Loopback, "loopback", -1, "", m.Loopback != netfencev1.Loopback_LOOPBACK_UNSPECIFIED)
	w.needs(Source, "source", -1, "", len(m.Source) > 0)
	return m, w.needed
}

// SubscribedAck is the SubscribedAck that says the same as a BulkUpdate. It shares the parts of m.
func SubscribedAck(m *netfencev1.BulkUpdate) *netfencev1.SubscribedAck {
	return &netfencev1.SubscribedAck{
		Mode:       m.Mode,
		AllowCidrs: m.AllowCidrs,
		DenyCidrs:  m.DenyCidrs,
		Dns:        m.Dns,
		Audit:      m.Audit,
		Replies:    m.Replies,
		RepliesUdp: m.RepliesUdp,
		Loopback:   m.Loopback,
		Source:     m.Source,
	}
}

// writer notes the fields that not every peer understands.
type writer struct {
	needed []UnsupportedError
}

func (w *writer) needs(f Feature, list string, index int, field string, set bool) {
	if !set || slices.ContainsFunc(w.needed, func(n UnsupportedError) bool { return n.Feature == f }) {
		return
	}
	if index >= 0 {
		list = fmt.Sprintf("%s[%d].%s", list, index, field)
	}
	w.needed = append(w.needed, UnsupportedError{Field: list, Feature: f})
}

func (w *writer) rules(list string, rules []policy.Rule) []*netfencev1.CIDREntry {
	entries := make([]*netfencev1.CIDREntry, len(rules))
	for i := range rules {
		r := &rules[i]
		w.needs(Ports, list, i, "ports", len(r.Ports) > 0)
		w.needs(ExpiresAt, list, i, "expires_at", !r.ExpiresAt.IsZero())
		entry := &netfencev1.CIDREntry{Cidr: r.Prefix.String(), Ports: PortRanges(r.Ports)}
		if r.TTL != 0 {
			entry.Ttl = durationpb.New(r.TTL)
		}
		if !r.ExpiresAt.IsZero() {
			entry.ExpiresAt = timestamppb.New(r.ExpiresAt)
		}
		entries[i] = entry
	}
	return entries
}

// dns leaves out a DNS part that says nothing: unset means disabled.
func (w *writer) dns(d *policy.DNS) *netfencev1.DnsConfig {
	m := &netfencev1.DnsConfig{
		Mode:            DNSMode(d.Mode),
		AllowDomains:    w.domains("dns.allow_domains", d.Allow),
		DenyDomains:     w.domains("dns.deny_domains", d.Deny),
		UpstreamServers: texts(d.Upstreams, netip.AddrPort.String),
		RefuseWith:      encode(refuseCodes, d.RefuseWith),
	}
	for _, f := range d.Forward {
		m.Forward = append(m.Forward, &netfencev1.ZoneForward{
			Zone:     f.Zone,
			To:       texts(f.To, netip.AddrPort.String),
			Original: f.Original,
		})
	}
	w.needs(RefuseWith, "dns.refuse_with", -1, "", m.RefuseWith != netfencev1.RefuseCode_REFUSE_CODE_UNSPECIFIED)
	w.needs(Forward, "dns.forward", -1, "", len(m.Forward) > 0)
	if d.Mode == policy.DNSDisabled && len(d.Allow)+len(d.Deny)+len(d.Upstreams)+len(d.Forward) == 0 &&
		d.RefuseWith == policy.RefuseDefault {
		return nil
	}
	return m
}

func (w *writer) domains(list string, rules []policy.DomainRule) []*netfencev1.DomainEntry {
	entries := make([]*netfencev1.DomainEntry, len(rules))
	for i := range rules {
		r := &rules[i]
		w.needs(Ports, list, i, "ports", len(r.Ports) > 0)
		w.needs(Private, list, i, "private", r.Private)
		entries[i] = &netfencev1.DomainEntry{
			Domain:            r.Domain,
			IncludeSubdomains: r.IncludeSubdomains,
			Ports:             PortRanges(r.Ports),
			Private:           r.Private,
		}
	}
	return entries
}

// PortRanges writes ports.
func PortRanges(ports []policy.Ports) []*netfencev1.PortRange {
	var ranges []*netfencev1.PortRange
	for _, p := range ports {
		m := &netfencev1.PortRange{First: uint32(p.First), Last: uint32(p.Last), Protocol: encode(protocols, p.Protocol)}
		ranges = append(ranges, m)
	}
	return ranges
}

func texts[T any](values []T, text func(T) string) []string {
	var list []string
	for _, v := range values {
		list = append(list, text(v))
	}
	return list
}
