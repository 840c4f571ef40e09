// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// guarded are the addresses that no name on the internet has any business to
// point to. The documentation ranges are not among them: nothing is there to
// be protected.
var guarded = parsePrefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8",
	"168.63.129.16/32", // Azure's host
	"169.254.0.0/16",   // with 169.254.169.254, the metadata of clouds
	"172.16.0.0/12",
	"192.0.0.0/24",    // RFC 6890: DS-Lite, NAT64 discovery
	"192.88.99.0/24",  // RFC 7526: 6to4 relays
	"192.168.0.0/16",  //
	"198.18.0.0/15",   // RFC 2544
	"224.0.0.0/4",     //
	"240.0.0.0/4",     // with the broadcast address and our own range
	"::/96",           // unspecified, loopback, IPv4-compatible
	"::ffff:0:0/96",   // an AAAA record with an IPv4 address inside
	"::ffff:0:0:0/96", // RFC 7915, IPv4-translated
	"64:ff9b::/96", "64:ff9b:1::/48",
	"100::/64",     // RFC 6666
	"2001::/32",    // Teredo
	"2001:20::/28", // RFC 7343, identifiers
	"5f00::/16",    // RFC 9602, segment routing
	"2002::/16",
	"fc00::/7", // with fd00:ec2::254, metadata, and our own range
	"fe80::/10", "fec0::/10", "ff00::/8",
)

func parsePrefixes(all ...string) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(all))
	for i, s := range all {
		prefixes[i] = netip.MustParsePrefix(s)
	}
	return prefixes
}

// hostAddrs remembers the host's addresses for hostsFor, and for longer if they
// cannot be read, say for want of file descriptors.
type hostAddrs struct {
	read func() ([]netip.Addr, error)
	last atomic.Pointer[hostSnapshot]
	mu   sync.Mutex // they are read
}

type hostSnapshot struct {
	addrs []netip.Addr
	at    time.Time
	// followed: somebody reads the next, and this one is good until then. As long as others hold the kernel's lock that
	// reading takes, which any of its network namespaces may for seconds, addresses cannot change either.
	followed atomic.Bool
}

const hostsFor = time.Second

func interfaceAddrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(all))
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, prefix.Addr())
		}
	}
	return addrs, nil
}

// has is true of every address while none are known.
func (h *hostAddrs) has(addr netip.Addr) bool {
	seen := h.last.Load()
	if seen == nil || !seen.followed.Load() && time.Since(seen.at) > hostsFor {
		if seen = h.look(); seen == nil {
			return true
		}
	}
	return slices.Contains(seen.addrs, addr.Unmap())
}

// due reports whether the caller is to look first, where nobody else has to wait for it. Unless they
// are very old, one is that finds them so.
func (h *hostAddrs) due() bool {
	seen := h.last.Load()
	if seen == nil {
		return true
	}
	switch age := time.Since(seen.at); {
	case age <= hostsFor, seen.followed.Load():
		return false
	case age <= 2*hostsFor:
		return seen.followed.CompareAndSwap(false, true)
	}
	return true
}

// look reads them, if they are to be read, and returns what is known then: nil if nothing is.
func (h *hostAddrs) look() *hostSnapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, seen := time.Now(), h.last.Load()
	if seen != nil && now.Sub(seen.at) <= hostsFor {
		return seen
	}
	addrs, err := h.read()
	switch {
	case err == nil:
		next := &hostSnapshot{at: now}
		for _, a := range addrs {
			next.addrs = append(next.addrs, a.Unmap().WithZone(""))
		}
		seen = next
	case seen != nil:
		seen = &hostSnapshot{at: now, addrs: seen.addrs}
	default:
		return nil
	}
	h.last.Store(seen)
	return seen
}

// surprising reports whether an answer must not point to addr: a name in
// somebody else's hands would open what is behind the filter.
func (s *Server) surprising(addr netip.Addr) bool {
	return reserved(addr) || s.host.has(addr)
}

func reserved(addr netip.Addr) bool {
	return slices.ContainsFunc(guarded, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// permits reports whether an answer may hold addr: for every member that is not
// in audit.
func (s *Server) permits(r *ruling, addr netip.Addr) bool {
	for i := range r.voices {
		if v := &r.voices[i]; !v.Names.Audit && !s.passes(v, addr) {
			return false
		}
	}
	return true
}

// passes reports whether an answer may hold addr, for one member.
func (s *Server) passes(v *voice, addr netip.Addr) bool {
	return s.AllowPrivateAnswers || !s.surprising(addr) || v.vouches(addr) || v.Names.Covers(addr)
}

// vouches reports whether the member's word for the name is meant for a
// surprising address, too. An address of a control plane's own is its decision,
// as a rule for it would be.
func (v *voice) vouches(addr netip.Addr) bool {
	return v.grant.Private || slices.Contains(v.given, addr.Unmap())
}

// lesson returns the addresses of an answer that a member learns. One that is
// there because a static rule covers it is that rule's alone: it is open for the
// rule's ports and as long as the rule stands, not for what the name's rule says.
func (s *Server) lesson(v *voice, addrs []netip.Addr) []netip.Addr {
	if !v.learns {
		return nil
	}
	if s.AllowPrivateAnswers || v.grant.Private {
		return addrs
	}
	others := func(addr netip.Addr) bool { return s.surprising(addr) && !v.vouches(addr) }
	if !slices.ContainsFunc(addrs, others) {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), others)
}
