// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

// ruling is what the chain of a query says to it.
type ruling struct {
	// voices are the members whose policy filters names, innermost first. None,
	// and nobody minds: the query is passed on and teaches nothing.
	voices  []voice
	outcome outcome
	by      int    // of voices: whose word a refusal or a failure is
	why     string // of the same
	detail  string // not for the client
	code    policy.RefuseCode
	local   bool // no data, answered here

	given bool // by control planes of members that are not in audit: addrs is the answer
	addrs []netip.Addr
	ttl   time.Duration
}

type outcome uint8

const (
	failed outcome = iota // nobody could decide
	refused
	allowed
)

// voice is what one member says.
type voice struct {
	datapath.Member
	reason string
	grant  policy.Grant
	learns bool
	ruled  bool // by a rule of its own, not for want of one
	given  []netip.Addr
	// against is what would have become of the query but for the member's audit:
	// it is answered as if nothing were against it.
	against string

	learned []netip.Addr // once the kernel holds them
}

// decide asks every member whose policy filters names; all that are not in audit
// must allow. Rules
// are asked before control planes, which then hear of no query that is refused
// anyway.
func (s *Server) decide(ctx context.Context, q *query, chain []datapath.Member) *ruling {
	r := &ruling{outcome: allowed}
	for _, m := range chain {
		if m.Names.Intercepts() {
			r.voices = append(r.voices, voice{Member: m})
		}
	}
	if len(r.voices) == 0 {
		if len(chain) == 0 {
			return r.say(failed, 0, "no policy is in force for this workload")
		}
		return r
	}
	if !q.plain && r.objectAll(refused, q.Name+" has characters that no rule can name") {
		return r
	}
	if within(q.name, canary) && r.objectAll(refused, canary+" tells browsers to use this resolver") {
		r.code = policy.RefuseNXDomain
		return r
	}
	for i := range r.voices {
		v := &r.voices[i]
		if v.against != "" || v.Names.Mode == policy.DNSProxy && !v.Names.Closed {
			continue
		}
		d := v.Names.Decide(q.Name)
		if d.Action != policy.Allow {
			if r.object(refused, i, v.reasonAgainst(q.name, d)) {
				return r
			}
			continue
		}
		v.reason, v.ruled = d.Reason, len(d.Rules) > 0
		v.grant, v.learns = v.Names.Grant(d)
	}
	if within(q.name, discovery) && r.objectAll(allowed, discovery+" is answered here") {
		r.local = true
		return r
	}
	for i := range r.voices {
		v := &r.voices[i]
		if v.Names.Mode != policy.DNSProxy || v.against != "" {
			continue
		}
		if out, why := s.askRemote(ctx, q, v, r); out != allowed && r.object(out, i, why) {
			return r
		}
	}
	return r
}

func (r *ruling) say(o outcome, by int, why string) *ruling {
	r.outcome, r.by, r.why = o, by, why
	if r.code == policy.RefuseDefault && by < len(r.voices) {
		r.code = r.voices[by].Names.RefuseWith
	}
	return r
}

// reasonAgainst says why name is refused, in words for whoever sees the answer.
func (v *voice) reasonAgainst(name string, d policy.NameDecision) string {
	if v.Names.Closed || len(d.Rules) > 0 || d.Name != name {
		return d.Reason
	}
	return "no rule allows " + cmp.Or(name, ".")
}

// givenAnswer is the message that an upstream with those addresses would send.
func (r *ruling) givenAnswer(q *query) *dns.Msg {
	m := q.reply(dns.RcodeSuccess)
	for _, addr := range r.addrs {
		hdr := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: seconds(r.ttl)}
		switch {
		case q.Qtype == dns.TypeA && addr.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: hdr, A: addr.AsSlice()})
		case q.Qtype == dns.TypeAAAA && addr.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: hdr, AAAA: addr.AsSlice()})
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{q.soa()}
	}
	return m
}

// servers chooses whom to ask: of the members that filter names (of all, if
// none does) the innermost that says so, else the daemon's. A zone goes before
// servers for everything.
func (s *Server) servers(q *query, r *ruling, chain []datapath.Member) ([]netip.AddrPort, error) {
	around := chain
	if len(r.voices) > 0 {
		chain = nil
		for _, v := range r.voices {
			chain = append(chain, v.Member)
		}
	}
	for _, m := range chain {
		if z := zoneOf(q.name, m.Names.Forward); z != nil {
			return s.forward(z, q, around)
		}
	}
	if z := zoneOf(q.name, s.Forward); z != nil {
		return s.forward(z, q, around)
	}
	for _, m := range chain {
		if len(m.Names.Upstreams) > 0 {
			return s.reachable(m.Names.Upstreams)
		}
	}
	servers, err := s.Upstreams()
	if err != nil {
		return nil, err
	}
	return s.reachable(servers)
}

// zoneOf returns the nearest zone that name is in.
func zoneOf(name string, zones []policy.ZoneForward) *policy.ZoneForward {
	var best *policy.ZoneForward
	for i := range zones {
		if z := &zones[i]; within(name, z.Zone) && (best == nil || len(z.Zone) > len(best.Zone)) {
			best = z
		}
	}
	return best
}

func (s *Server) forward(z *policy.ZoneForward, q *query, chain []datapath.Member) ([]netip.AddrPort, error) {
	if !z.Original {
		return s.reachable(z.To)
	}
	return s.original(z, q, chain)
}

// original is the server that the workload asked. Since that is the workload's
// choice, and what it answers opens the filter, it is asked only where every
// member would let the workload ask it by itself: nobody is reached, and nothing
// is told to anybody, by way of this host that could not be without.
func (s *Server) original(z *policy.ZoneForward, q *query, chain []datapath.Member) ([]netip.AddrPort, error) {
	fails := func(why string) error {
		return fmt.Errorf("zone %s is forwarded to the server that the workload asked, %s", z.Zone, why)
	}
	server, err := s.meant(q, chain[0])
	if err != nil {
		return nil, fails("which is not known: " + err.Error())
	}
	addr := server.Addr()
	servers, err := s.reachable([]netip.AddrPort{server})
	if err != nil || !isHost(addr) {
		return nil, fails("which is not known (give the zone's servers)")
	}
	if q.peer.Origin == OtherNetns && addr.IsLoopback() {
		return nil, fails(fmt.Sprintf("%v, which only its own network namespace reaches (give the zone's servers)", addr))
	}
	now, err := datapath.BootClock()
	if err != nil {
		return nil, err
	}
	reaches := (*policy.Names).Reaches
	if q.peer.Origin == Cgroup && (addr.IsLoopback() || s.host.has(addr)) {
		reaches = (*policy.Names).ReachesOverLo
	}
	for _, m := range chain {
		if !reaches(m.Names, server, now) {
			return nil, fails(fmt.Sprintf("%v, which its rules do not allow (allow %v/udp)", addr, server))
		}
	}
	return servers, nil
}

// meant is whom the query was for.
func (s *Server) meant(q *query, whose datapath.Member) (netip.AddrPort, error) {
	asked := datapath.CgroupQuery{Member: whose, Client: q.peer.Client, Asked: q.peer.Server, TCP: q.stream, Netns: datapath.OwnNetns}
	switch q.peer.Origin {
	case Interface:
		return q.peer.Server, nil
	case OtherNetns:
		asked.Netns = q.peer.Netns
	}
	return s.Kernel.Original(asked)
}

// isHost is false of what stands for several hosts, or for any, and of an address on a link, as the link is not known.
func isHost(addr netip.Addr) bool {
	if addr.Is4() {
		return !addr.IsUnspecified() && addr.As4()[0] < 224
	}
	return !addr.IsUnspecified() && !addr.IsMulticast() && !addr.IsLinkLocalUnicast()
}

// reachable leaves out the servers that are this one.
func (s *Server) reachable(servers []netip.AddrPort) ([]netip.AddrPort, error) {
	own := func(server netip.AddrPort) bool {
		addr := server.Addr().Unmap().WithZone("")
		return !server.IsValid() || server.Port() == 0 || slices.ContainsFunc(s.Avoid, func(p netip.Prefix) bool { return p.Contains(addr) })
	}
	left := servers
	if slices.ContainsFunc(servers, own) {
		left = slices.DeleteFunc(slices.Clone(servers), own)
	}
	if len(left) == 0 {
		return nil, fmt.Errorf("no upstream server to ask (set dns.upstream)")
	}
	return left, nil
}
