// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// maxAddrs is how many addresses are taken from an answer; no service has more,
// and whoever makes them up fills only so much of the kernel's table with one.
const maxAddrs = 128

// maxChain is how many aliases are followed; BIND follows as many.
const maxChain = 16

// filtered is what is left of an answer.
type filtered struct {
	answer, authority []dns.RR
	addrs             []netip.Addr // in answer, each once
	removed           []netip.Addr // by the guard
	aliases           []string     // where the chain leads; canonical
	ttl               uint32       // the least of the chain's
	altered           bool         // records are missing that a signature covers
}

// filter keeps of an answer what the question leads to: the chain of aliases
// that starts at its name, and at the chain's end the records of its type.
// Whatever else a server adds is not taken from it, however well meant.
func filter(q *query, m *dns.Msg, permits func(netip.Addr) bool) (*filtered, error) {
	f := &filtered{ttl: maxTTL}
	owner, err := f.follow(q, m.Answer)
	if err != nil {
		return nil, err
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Rrtype != q.Qtype || h.Class != dns.ClassINET || canonical(h.Name) != owner || slices.Contains(f.answer, rr) {
			continue
		}
		if kept := f.record(rr, permits); kept != nil {
			f.keep(kept)
		}
	}
	f.authority = authority(m.Ns, owner, q.do)
	if q.do {
		f.signatures(m.Answer)
	}
	return f, nil
}

// maxTTL is RFC 2181 section 8's: what is greater counts as 0.
const maxTTL = 1<<31 - 1

func validTTL(ttl uint32) uint32 {
	if ttl > maxTTL {
		return 0
	}
	return ttl
}

// canonical folds a name as it stands in a message. What is not ASCII is
// escaped there.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (f *filtered) keep(rr dns.RR) {
	h := rr.Header()
	h.Ttl = validTTL(h.Ttl)
	f.ttl = min(f.ttl, h.Ttl)
	f.answer = append(f.answer, rr)
}

// follow keeps the aliases from the question on and returns the name at their end.
func (f *filtered) follow(q *query, answer []dns.RR) (owner string, err error) {
	owner = q.name
	if q.Qtype == dns.TypeCNAME || q.Qtype == dns.TypeDNAME {
		return owner, nil // the alias itself is asked for
	}
	seen := map[string]bool{owner: true}
	for {
		cname, dname := aliasOf(answer, owner)
		if cname == nil && dname == nil {
			return owner, nil
		}
		if dname != nil {
			target, ok := substitute(owner, dname)
			switch {
			case !ok:
				return "", fmt.Errorf("a DNAME leads from %s to a name that is too long", owner)
			case cname == nil: // RFC 6672 section 3.1: made by whoever answers
				cname = &dns.CNAME{
					Hdr:    dns.RR_Header{Name: owner + ".", Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: dname.Hdr.Ttl},
					Target: target + ".",
				}
				f.altered = true
			case canonical(cname.Target) != target:
				dname = nil // has nothing to do with it
			}
		}
		if dname != nil && !slices.Contains(f.answer, dns.RR(dname)) {
			f.keep(dname)
		}
		f.keep(cname)
		owner = canonical(cname.Target)
		f.aliases = append(f.aliases, owner)
		if seen[owner] {
			return "", errors.New("the aliases go round in a circle")
		}
		if len(f.aliases) > maxChain {
			return "", fmt.Errorf("more than %d aliases in a row", maxChain)
		}
		seen[owner] = true
	}
}

// aliasOf finds what makes name an alias: its CNAME, and the DNAME nearest
// above it.
func aliasOf(answer []dns.RR, name string) (cname *dns.CNAME, dname *dns.DNAME) {
	for _, rr := range answer {
		if rr.Header().Class != dns.ClassINET {
			continue
		}
		switch rr := rr.(type) {
		case *dns.CNAME:
			if cname == nil && canonical(rr.Hdr.Name) == name {
				cname = rr
			}
		case *dns.DNAME:
			above := canonical(rr.Hdr.Name)
			if above != name && within(name, above) && (dname == nil || len(above) > len(canonical(dname.Hdr.Name))) {
				dname = rr
			}
		}
	}
	return cname, dname
}

// substitute does what RFC 6672 section 2.2 does to a name below a DNAME.
func substitute(name string, d *dns.DNAME) (target string, ok bool) {
	above := canonical(d.Hdr.Name)
	target = strings.TrimSuffix(strings.TrimSuffix(name, above), ".")
	if to := canonical(d.Target); to != "" {
		target += "." + to
	}
	_, ok = dns.IsDomainName(target)
	return target, ok && len(target) <= 253
}

// record takes out of a record what must not reach the client; nil: all of it.
// The addresses that stay are noted.
func (f *filtered) record(rr dns.RR, permits func(netip.Addr) bool) dns.RR {
	switch rr := rr.(type) {
	case *dns.A:
		if f.takes(rr.A, 4, permits) {
			return rr
		}
	case *dns.AAAA:
		if f.takes(rr.AAAA, 16, permits) {
			return rr
		}
	case *dns.SVCB:
		if f.service(rr, permits) {
			return rr
		}
	case *dns.HTTPS:
		if f.service(&rr.SVCB, permits) {
			return rr
		}
	default:
		return rr
	}
	return nil
}

// takes notes an address, of so many bytes in the message, or that it is removed.
func (f *filtered) takes(ip net.IP, size int, permits func(netip.Addr) bool) bool {
	addr, ok := netip.AddrFromSlice(ip)
	if size == 4 { // net.IP may hold 16 bytes for it
		addr = addr.Unmap()
	}
	if !ok || addr.BitLen() != 8*size {
		f.altered = true
		return false
	}
	to := &f.addrs
	if ok = permits(addr); !ok {
		f.altered, to = true, &f.removed
	}
	addr = addr.Unmap() // the kernel knows no other form
	if slices.Contains(*to, addr) {
		return ok
	}
	if len(*to) == maxAddrs {
		f.altered = true
		return false
	}
	*to = append(*to, addr)
	return ok
}

// service removes ech, which hides from the filter whom the client talks to,
// and the hints that the guard refuses. A record that makes what was removed
// mandatory goes whole (RFC 9460 section 8).
func (f *filtered) service(rr *dns.SVCB, permits func(netip.Addr) bool) bool {
	gone := map[dns.SVCBKey]bool{}
	var mandatory []dns.SVCBKey
	var values []dns.SVCBKeyValue
	before := len(f.addrs)
	for _, kv := range rr.Value {
		stays := true
		switch kv := kv.(type) {
		case *dns.SVCBECHConfig:
			stays = false
		case *dns.SVCBMandatory:
			mandatory = kv.Code
		case *dns.SVCBIPv4Hint:
			kv.Hint = f.hints(kv.Hint, 4, permits)
			stays = len(kv.Hint) > 0
		case *dns.SVCBIPv6Hint:
			kv.Hint = f.hints(kv.Hint, 16, permits)
			stays = len(kv.Hint) > 0
		}
		if stays {
			values = append(values, kv)
			continue
		}
		gone[kv.Key()] = true
		f.altered = true
	}
	rr.Value = values
	if slices.ContainsFunc(mandatory, func(k dns.SVCBKey) bool { return gone[k] }) {
		f.addrs = f.addrs[:before] // the client does not see them
		return false
	}
	return true
}

func (f *filtered) hints(hints []net.IP, size int, permits func(netip.Addr) bool) []net.IP {
	var left []net.IP
	for _, ip := range hints {
		if f.takes(ip, size, permits) {
			left = append(left, ip)
		}
	}
	return left
}

// signatures keeps the signatures of what was kept, for clients that validate.
// What lost a record would not hold under its own.
func (f *filtered) signatures(answer []dns.RR) {
	kept := map[string]bool{}
	for _, rr := range f.answer {
		kept[setOf(rr.Header().Name, rr.Header().Rrtype)] = true
	}
	for _, rr := range answer {
		sig, ok := rr.(*dns.RRSIG)
		if ok && sig.Hdr.Class == dns.ClassINET && kept[setOf(sig.Hdr.Name, sig.TypeCovered)] && !slices.Contains(f.answer, rr) {
			f.keep(sig)
		}
	}
}

func setOf(name string, rrtype uint16) string { return fmt.Sprint(canonical(name), " ", rrtype) }

// authority keeps the SOA by which a negative answer is cached and, for
// clients that validate, the proofs.
func authority(ns []dns.RR, owner string, do bool) []dns.RR {
	var left []dns.RR
	for _, rr := range ns {
		h := rr.Header()
		keep := false
		switch rr := rr.(type) {
		case *dns.SOA:
			keep = within(owner, canonical(h.Name))
		case *dns.NSEC, *dns.NSEC3:
			keep = do
		case *dns.RRSIG:
			switch rr.TypeCovered {
			case dns.TypeSOA, dns.TypeNSEC, dns.TypeNSEC3:
				keep = do
			}
		}
		if keep && h.Class == dns.ClassINET {
			h.Ttl = validTTL(h.Ttl)
			left = append(left, rr)
		}
	}
	return left
}
