// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"

	"github.com/miekg/dns"
)

// request is what servers are asked.
type request struct {
	dns.Question // in lower case
	do, cd, ad   bool
	index        uint32 // who asked first
}

var (
	errNoEDNS = errors.New("does not speak EDNS")
	errUseTCP = errors.New("truncated")
)

// message appends the query that goes out to b, whose id is still to be set.
// Nothing of the client's but its question and three flags does: no cookie, no
// client subnet.
func (r *request) message(b []byte, edns, mixCase bool) ([]byte, error) {
	at := len(b)
	b = append(b, 0, 0, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0) // RD, one question
	if r.ad {
		b[at+3] |= 0x20
	}
	if r.cd {
		b[at+3] |= 0x10
	}
	b, err := appendName(b, r.Name)
	if err != nil {
		return nil, err
	}
	if mixCase {
		mix(b[at+headerBytes:])
	}
	b = binary.BigEndian.AppendUint16(b, r.Qtype)
	b = binary.BigEndian.AppendUint16(b, r.Qclass)
	if edns {
		b[at+11] = 1
		b = appendOPT(b, r.do)
	}
	return b, nil
}

// appendName appends a name, whose text ends with a dot, as it stands in a message.
func appendName(b []byte, name string) ([]byte, error) {
	at := len(b)
	if len(name) < maxWireName && name != "." {
		for label := range strings.SplitSeq(name[:len(name)-1], ".") {
			if len(label) == 0 || len(label) > 63 || strings.ContainsFunc(label, func(c rune) bool { return c >= 0x80 || !plainByte(byte(c)) }) {
				b = b[:at]
				break
			}
			b = append(b, byte(len(label)))
			b = append(b, label...)
		}
		if len(b) > at {
			return append(b, 0), nil
		}
	}
	var wire [maxWireName]byte
	end, err := dns.PackDomainName(name, wire[:], 0, nil, false)
	if err != nil {
		return nil, err
	}
	return append(b, wire[:end]...), nil
}

// maxWireName is RFC 1035's limit of a name in a message.
const maxWireName = 255

// appendOPT appends an OPT record without options (RFC 6891 section 6.1.2).
func appendOPT(b []byte, do bool) []byte {
	flags := byte(0)
	if do {
		flags = 0x80
	}
	return append(b, 0, 0, byte(dns.TypeOPT), ednsBytes>>8, ednsBytes&0xff, 0, 0, flags, 0, 0, 0)
}

// mix writes the letters of a name in the one case or the other at random
// (draft-vixie-dnsext-dns0x20): more for a spoofer to guess. math/rand/v2 draws
// from ChaCha8, seeded by the system.
func mix(name []byte) {
	var bits uint64
	for i, c := range name {
		if i%64 == 0 {
			bits = rand.Uint64()
		}
		if 'a' <= c && c <= 'z' && bits>>(i%64)&1 == 1 {
			name[i] = c - 'a' + 'A'
		}
	}
}

// match reports whether in answers the query that was sent, and then writes the
// question in lower case, as it was before it was mixed: the rest of the message
// may point to it for parts of its own names, where the client would see how we
// spelt it. false and no error: keep waiting. errUseTCP and errNoEDNS: it
// answers, but must be asked otherwise.
func match(sent, in []byte, udp bool) (bool, error) {
	if len(in) < headerBytes || !bytes.Equal(in[:2], sent[:2]) || in[2]&0x80 == 0 || in[2]>>3&0xf != dns.OpcodeQuery {
		return false, nil
	}
	edns := sent[11] == 1
	want := sent[headerBytes:]
	if edns {
		want = want[:len(want)-len(appendOPT(nil, false))]
	}
	refusesEDNS := edns && (in[3]&0xf == dns.RcodeFormatError || in[3]&0xf == dns.RcodeNotImplemented)
	count := binary.BigEndian.Uint16(in[4:])
	if count == 0 && refusesEDNS {
		return false, errNoEDNS // a server that stops at what it does not know may not repeat the question
	}
	// The question is looked at before the rest, which a truncated message may lack.
	if count != 1 || len(in) < headerBytes+len(want) {
		return false, nil
	}
	asked, name := in[headerBytes:headerBytes+len(want)], len(want)-4
	switch {
	case !bytes.Equal(asked[name:], want[name:]) || !foldedEqual(asked[:name], want[:name]):
		return false, nil
	case udp && !bytes.Equal(asked, want):
		return false, errUseTCP // spoofed, or from a server that folds case
	case udp && in[2]&0x2 != 0:
		return false, errUseTCP
	}
	fold(asked[:name])
	if refusesEDNS {
		return false, errNoEDNS
	}
	return true, nil
}

// fold writes a name of a message, or a part of it that begins with a length,
// in lower case; no length of a label is a letter.
func fold(name []byte) {
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			name[i] = c + 'a' - 'A'
		}
	}
}

// foldedEqual compares names of a message without regard to case.
func foldedEqual(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		d := b[i]
		if c == d {
			continue
		}
		if c |= 0x20; c != d|0x20 || c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}
