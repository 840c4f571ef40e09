// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// plain is what filter makes of an answer that is of the common kind: aliases and
// addresses, or that there are none, of records that need no more than a look.
// Of it the answers for all who ask are made. Other answers have none.
type plain struct {
	// msg is the message without what differs: an id of 0, the question in lower
	// case, TTLs as they came, no OPT. Owners point to where their names stand.
	msg     []byte
	ttls    []int // where TTLs stand in msg
	addrs   []netip.Addr
	aliases []string
	ttl     uint32 // the least of those of aliases and addresses
	life    uint32 // how long it may be kept, as lifeOf has it
	// surprises: the guard has something against an address, whatever the host's own are.
	surprises bool
}

// record is one of a message.
type record struct {
	name, data int // offsets
	size       int
	rrtype     uint16
	ttl        uint32
}

const maxRecords = 64 // of an answer that is digested

// digest returns nil for what is not of the common kind, or is no message at all.
// It is stricter than unpack.
func digest(wire []byte) *plain {
	if len(wire) < headerBytes || binary.BigEndian.Uint16(wire[4:]) != 1 || wire[2]&0x02 != 0 {
		return nil
	}
	switch wire[3] & 0xf {
	case dns.RcodeSuccess, dns.RcodeNameError:
	default:
		return nil
	}
	var room [maxRecords]record
	var name [maxWireName]byte
	question, at, ok := expand(name[:0], wire, headerBytes)
	if !ok || at+4 > len(wire) || at != headerBytes+len(question) {
		return nil
	}
	qtype := binary.BigEndian.Uint16(wire[at:])
	if binary.BigEndian.Uint16(wire[at+2:]) != dns.ClassINET || qtype == dns.TypeCNAME || qtype == dns.TypeDNAME {
		return nil
	}
	at += 4
	counts := [3]int{}
	all := room[:0]
	for i := range counts {
		counts[i] = int(binary.BigEndian.Uint16(wire[6+2*i:]))
		for range counts[i] {
			r, next, ok := readRecord(wire, at)
			if !ok || len(all) == maxRecords || !simple(wire, r, i) {
				return nil
			}
			all = append(all, r)
			at = next
		}
	}
	if at != len(wire) {
		return nil
	}
	p := &plain{msg: make([]byte, 0, len(wire)+64), ttl: maxTTL}
	p.msg = append(p.msg, wire[:headerBytes+len(question)+4]...)
	fold(p.msg[headerBytes : headerBytes+len(question)])
	clear(p.msg[6:12])
	if !p.build(wire, qtype, all[:counts[0]], all[counts[0]:counts[0]+counts[1]], len(question)) {
		return nil
	}
	return p
}

// readRecord reads a record without looking into its data, but for its name.
func readRecord(wire []byte, at int) (r record, next int, ok bool) {
	var name [maxWireName]byte
	_, end, ok := expand(name[:0], wire, at)
	if !ok || end+10 > len(wire) {
		return r, 0, false
	}
	r = record{
		name: at, data: end + 10, size: int(binary.BigEndian.Uint16(wire[end+8:])),
		rrtype: binary.BigEndian.Uint16(wire[end:]), ttl: validTTL(binary.BigEndian.Uint32(wire[end+4:])),
	}
	if r.rrtype == dns.TypeOPT {
		// An extended code is none of those that are digested (RFC 6891 section 6.1.3).
		ok = wire[end-1] == 0 && end == at+1 && wire[end+4] == 0
	} else {
		ok = binary.BigEndian.Uint16(wire[end+2:]) == dns.ClassINET
	}
	return r, r.data + r.size, ok && r.data+r.size <= len(wire)
}

// simple reports whether a record, in one of the sections after the question, is
// well-formed and of a kind that is kept or dropped without another look.
func simple(wire []byte, r record, section int) bool {
	data := wire[r.data : r.data+r.size]
	var name [maxWireName]byte
	switch {
	case r.rrtype == dns.TypeA:
		return r.size == 4
	case r.rrtype == dns.TypeAAAA:
		return r.size == 16
	case r.rrtype == dns.TypeCNAME && section == 0, r.rrtype == dns.TypeNS && section == 1:
		_, end, ok := expand(name[:0], wire, r.data)
		return ok && end == r.data+r.size
	case r.rrtype == dns.TypeSOA && section == 1:
		_, end, ok := expand(name[:0], wire, r.data)
		if !ok || end > r.data+r.size {
			return false
		}
		_, end, ok = expand(name[:0], wire, end)
		return ok && end+20 == r.data+r.size
	case r.rrtype == dns.TypeOPT && section == 2:
		return len(data) == 0 // what a server has to say is passed on by others
	}
	return false
}

// expand appends a name of a message to dst, without pointers. They may lead only
// backwards.
func expand(dst, wire []byte, at int) (name []byte, end int, ok bool) {
	begin := len(dst)
	limit := at
	for end = -1; at < len(wire); {
		switch n := int(wire[at]); {
		case n == 0:
			if end < 0 {
				end = at + 1
			}
			return append(dst, 0), end, true
		case n < 0x40:
			if at+1+n > len(wire) || len(dst)-begin+1+n >= maxWireName {
				return nil, 0, false
			}
			dst = append(dst, wire[at:at+1+n]...)
			at += 1 + n
		case n >= 0xc0 && at+1 < len(wire):
			to := (n&0x3f)<<8 | int(wire[at+1])
			if to >= limit || to < headerBytes {
				return nil, 0, false
			}
			if end < 0 {
				end = at + 2
			}
			at, limit = to, to
		default:
			return nil, 0, false
		}
	}
	return nil, 0, false
}

// build follows the aliases and keeps what they lead to.
func (p *plain) build(wire []byte, qtype uint16, answer, authority []record, nameSize int) bool {
	var names [2][maxWireName]byte
	owner := append(names[0][:0], p.msg[headerBytes:headerBytes+nameSize]...)
	where := headerBytes // of the owner's name in p.msg
	count := 0
	is := func(r record) bool {
		name, _, _ := expand(names[1][:0], wire, r.name)
		return foldedEqual(name, owner)
	}
	for {
		i := slices.IndexFunc(answer, func(r record) bool { return r.rrtype == dns.TypeCNAME && is(r) })
		if i < 0 {
			break
		}
		if len(p.aliases) == maxChain || len(p.msg) > 0x3000 {
			return false
		}
		target, _, _ := expand(names[1][:0], wire, answer[i].data)
		p.head(where, answer[i], len(target))
		where = len(p.msg)
		p.msg = append(p.msg, target...)
		owner = append(names[0][:0], target...)
		fold(owner)
		text, ok := spell(owner)
		if !ok {
			return false
		}
		p.aliases = append(p.aliases, text)
		p.ttl = min(p.ttl, answer[i].ttl)
		count++
	}
	for _, r := range answer {
		if r.rrtype != qtype || !is(r) {
			continue
		}
		addr, _ := netip.AddrFromSlice(wire[r.data : r.data+r.size])
		p.surprises = p.surprises || reserved(addr)
		if addr = addr.Unmap(); !slices.Contains(p.addrs, addr) {
			p.addrs = append(p.addrs, addr)
		}
		p.head(where, r, r.size)
		p.msg = append(p.msg, wire[r.data:r.data+r.size]...)
		p.ttl = min(p.ttl, r.ttl)
		count++
	}
	binary.BigEndian.PutUint16(p.msg[6:], uint16(count))
	count = 0
	for _, r := range authority {
		name, _, _ := expand(names[1][:0], wire, r.name)
		at := len(owner) - len(name)
		if r.rrtype != dns.TypeSOA || at < 0 || !foldedEqual(owner[at:], name) || !boundary(owner, at) {
			continue
		}
		if count > 0 {
			return false
		}
		if len(name) == 1 {
			p.msg = append(p.msg, 0)
			p.fixed(r, 0)
		} else {
			p.head(where+at, r, 0)
		}
		from := len(p.msg)
		var end int
		p.msg, end, _ = expand(p.msg, wire, r.data)
		p.msg, end, _ = expand(p.msg, wire, end)
		p.msg = append(p.msg, wire[end:end+20]...)
		// How long there is nothing (RFC 2308 section 3), where a server says more.
		r.ttl = min(r.ttl, binary.BigEndian.Uint32(p.msg[len(p.msg)-4:]))
		binary.BigEndian.PutUint32(p.msg[p.ttls[len(p.ttls)-1]:], r.ttl)
		binary.BigEndian.PutUint16(p.msg[from-2:], uint16(len(p.msg)-from))
		if len(p.addrs) == 0 || p.msg[3]&0xf != dns.RcodeSuccess {
			p.life = min(p.ttl, r.ttl, seconds(longestNegative))
		}
		count++
	}
	if len(p.addrs) > 0 && p.msg[3]&0xf == dns.RcodeSuccess {
		p.life = min(p.ttl, seconds(longest))
	}
	binary.BigEndian.PutUint16(p.msg[8:], uint16(count))
	return len(p.msg) < 0x3000 // pointers reach no further than 0x3fff
}

// boundary reports whether a label of the name begins at a place.
func boundary(name []byte, at int) bool {
	for i := 0; i <= at && i < len(name); i += 1 + int(name[i]) {
		if i == at {
			return true
		}
	}
	return false
}

// head appends what stands before a record's data, for a name at a place in msg.
func (p *plain) head(where int, r record, size int) {
	p.msg = binary.BigEndian.AppendUint16(p.msg, uint16(0xc000|where))
	p.fixed(r, size)
}

func (p *plain) fixed(r record, size int) {
	p.msg = binary.BigEndian.AppendUint16(p.msg, r.rrtype)
	p.msg = binary.BigEndian.AppendUint16(p.msg, dns.ClassINET)
	p.ttls = append(p.ttls, len(p.msg))
	p.msg = binary.BigEndian.AppendUint32(p.msg, r.ttl)
	p.msg = binary.BigEndian.AppendUint16(p.msg, uint16(size))
}

// spell writes a name in lower case as text, without the final dot. ok is false
// where that would need escapes.
func spell(name []byte) (text string, ok bool) {
	var b [maxWireName]byte
	n := 0
	for at := 0; at < len(name) && name[at] != 0; at += 1 + int(name[at]) {
		if at > 0 {
			b[n] = '.'
			n++
		}
		for _, c := range name[at+1 : at+1+int(name[at])] {
			if !plainByte(c) {
				return "", false
			}
			b[n] = c
			n++
		}
	}
	return string(b[:n]), true
}

// plainByte is true of what stands in a name for itself.
func plainByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// answers reports whether the question is q's. Who asked upstream has seen to that;
// what is written over another would be no message.
func (p *plain) answers(q *query) bool {
	end := headerBytes + len(q.wire)
	return len(p.msg) >= end+4 && p.msg[end-1] == 0 && foldedEqual(p.msg[headerBytes:end], q.wire) &&
		binary.BigEndian.Uint16(p.msg[end:]) == q.Qtype
}

// answer makes the message for a client. life bounds how long it may hold it.
func (p *plain) answer(q *query, f *found, life uint32) []byte {
	b := make([]byte, len(p.msg), len(p.msg)+len(appendOPT(nil, false)))
	copy(b, p.msg)
	binary.BigEndian.PutUint16(b, q.id)
	b[2], b[3] = 0x80, 0x80|b[3]&0x0f // QR; RA and the code
	if q.rd {
		b[2] |= 0x01
	}
	if q.cd {
		b[3] |= 0x10
	}
	if p.msg[3]&0x20 != 0 && (q.ad || q.do) {
		b[3] |= 0x20
	}
	copy(b[headerBytes:], q.wire)
	for _, at := range p.ttls {
		binary.BigEndian.PutUint32(b[at:], min(f.left(binary.BigEndian.Uint32(b[at:])), life))
	}
	if q.edns {
		b[11] = 1
		b = appendOPT(b, q.do)
	}
	return b
}
