// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	headerBytes = 12
	// ednsBytes is what fits every path without fragments (DNS flag day 2020).
	ednsBytes = 1232
	// maxExtraText keeps an explanation from truncating the answer that it explains.
	maxExtraText = 200
)

// query is a question that can be answered.
type query struct {
	dns.Question // as the client wrote it
	// name is Name in lower case without the final dot. It is what rules judge
	// and what is asked upstream.
	name       string
	plain      bool   // nothing in Name had to be escaped
	wire       []byte // Name as it stands in the message
	id         uint16
	rd, ad, cd bool
	edns       bool // the client speaks it
	do         bool
	version    uint8 // of EDNS
	peer       Peer
	stream     bool // it came over TCP
	maxSize    int  // of the answer
	deadline   time.Time
}

func (q *query) typeName() string { return dns.Type(q.Qtype).String() }

// unpack parses a message. miekg/dns takes a message that ends early for one
// with fewer records, and reads records of any type without data, as dynamic
// updates have them; here both are garbage.
func unpack(b []byte) (*dns.Msg, error) {
	if len(b) < headerBytes {
		return nil, errors.New("shorter than a header")
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return nil, err
	}
	for i, n := range []int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if count := int(binary.BigEndian.Uint16(b[4+2*i:])); count != n {
			return nil, fmt.Errorf("section %d has %d records, not %d", i, n, count)
		}
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rdlength == 0 && !mayBeEmpty(rr) {
				return nil, fmt.Errorf("record of type %s without data", dns.Type(rr.Header().Rrtype))
			}
		}
	}
	return m, nil
}

func mayBeEmpty(rr dns.RR) bool {
	switch rr.(type) {
	case *dns.OPT, *dns.APL, *dns.NULL, *dns.RFC3597:
		return true
	}
	return false
}

// parse reads a query. Where it returns none, it returns the answer to what
// cannot be one, or nil for what deserves none.
func parse(b []byte, peer Peer, stream bool) (*query, []byte) {
	if len(b) < headerBytes || b[2]&0x80 != 0 { // an answer to an answer could go on for ever
		return nil, nil
	}
	if opcode := int(b[2] >> 3 & 0xf); opcode != dns.OpcodeQuery {
		return nil, headerOnly(b, dns.RcodeNotImplemented)
	}
	q := &query{peer: peer, stream: stream, maxSize: dns.MinMsgSize}
	if !q.read(b) {
		if rcode := q.readAny(b); rcode != dns.RcodeSuccess {
			return nil, headerOnly(b, rcode)
		}
	}
	if stream {
		q.maxSize = dns.MaxMsgSize
	}
	if rcode, text := q.unsupported(); rcode != dns.RcodeSuccess {
		return nil, q.pack(q.reply(rcode), extra{dns.ExtendedErrorCodeNotSupported, text})
	}
	return q, nil
}

// readAny reads any query.
func (q *query) readAny(b []byte) (rcode int) {
	m, err := unpack(b)
	if err != nil || len(m.Question) != 1 || len(m.Answer) > 0 || len(m.Ns) > 0 || m.Truncated {
		return dns.RcodeFormatError
	}
	q.Question, q.id, q.rd, q.ad, q.cd = m.Question[0], m.Id, m.RecursionDesired, m.AuthenticatedData, m.CheckingDisabled
	q.edns, q.do, q.version = false, false, 0
	_, end, err := dns.UnpackDomainName(b, headerBytes)
	if err != nil {
		return dns.RcodeFormatError
	}
	q.wire = b[headerBytes:end]
	q.name = strings.ToLower(strings.TrimSuffix(q.Name, "."))
	q.plain = !strings.Contains(q.Name, `\`)
	for _, rr := range m.Extra {
		if opt, ok := rr.(*dns.OPT); ok {
			if q.edns || opt.Hdr.Name != "." { // RFC 6891 section 6.1.1
				return dns.RcodeFormatError
			}
			q.speaks(opt.UDPSize(), opt.Version(), opt.Do())
		}
	}
	return dns.RcodeSuccess
}

func (q *query) speaks(size uint16, version uint8, do bool) {
	q.edns, q.version, q.do = true, version, do
	q.maxSize = min(max(int(size), dns.MinMsgSize), ednsBytes)
}

// read reads a query of the common kind: one question for a name without odd
// characters, and perhaps an OPT record, without options or with a cookie alone.
func (q *query) read(b []byte) bool {
	if binary.BigEndian.Uint16(b[4:]) != 1 || binary.BigEndian.Uint32(b[6:]) != 0 || b[10] != 0 || b[11] > 1 || b[2]&0x02 != 0 {
		return false
	}
	at := headerBytes
	for at < len(b) && b[at] != 0 && b[at] < 0x40 {
		at += 1 + int(b[at])
	}
	if at++; at+4 > len(b) || b[at-1] != 0 || at == headerBytes+1 || at-headerBytes > maxWireName {
		return false
	}
	q.wire = b[headerBytes:at]
	text, ok := spell(q.wire)
	if !ok {
		return false
	}
	q.Question = dns.Question{Name: text + ".", Qtype: binary.BigEndian.Uint16(b[at:]), Qclass: binary.BigEndian.Uint16(b[at+2:])}
	q.name, q.plain = strings.ToLower(text), true
	q.id, q.rd, q.ad, q.cd = binary.BigEndian.Uint16(b), b[2]&0x01 != 0, b[3]&0x20 != 0, b[3]&0x10 != 0
	rest := b[at+4:]
	if b[11] == 0 {
		return len(rest) == 0
	}
	if len(rest) < 11 || rest[0] != 0 || binary.BigEndian.Uint16(rest[1:]) != dns.TypeOPT || len(rest) != 11+int(binary.BigEndian.Uint16(rest[9:])) {
		return false
	}
	if options := rest[11:]; len(options) > 0 &&
		(len(options) < 12 || binary.BigEndian.Uint16(options) != dns.EDNS0COOKIE || len(options) != 4+int(binary.BigEndian.Uint16(options[2:]))) {
		return false
	}
	q.speaks(binary.BigEndian.Uint16(rest[3:]), rest[6], rest[7]&0x80 != 0)
	return true
}

// unsupported sorts out the questions that no rule is asked about.
func (q *query) unsupported() (rcode int, text string) {
	switch {
	case q.version != 0:
		return dns.RcodeBadVers, ""
	case q.Qclass != dns.ClassINET:
		return dns.RcodeRefused, "class " + dns.Class(q.Qclass).String()
	case q.Qtype == dns.TypeNone:
		return dns.RcodeFormatError, ""
	case q.Qtype == dns.TypeANY: // RFC 8482; answered by the rules' leave
		return dns.RcodeSuccess, ""
	case q.Qtype == dns.TypeOPT, q.Qtype >= 128 && q.Qtype <= 255: // RFC 6895 section 3.1: no data
		return dns.RcodeRefused, "type " + q.typeName()
	}
	return dns.RcodeSuccess, ""
}

// headerOnly answers what cannot be read further than its header.
func headerOnly(b []byte, rcode int) []byte {
	reply := make([]byte, headerBytes)
	copy(reply, b[:4])
	reply[2] = reply[2]&0x79 | 0x80 // opcode and RD kept, QR set
	reply[3] = byte(rcode)
	return reply
}

// extra is an Extended DNS Error (RFC 8914); one without text is left out.
type extra struct {
	code uint16
	text string
}

func (q *query) reply(rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.Id, m.Response, m.RecursionAvailable = q.id, true, true
	m.RecursionDesired, m.CheckingDisabled = q.rd, q.cd
	m.Question, m.Rcode, m.Compress = []dns.Question{q.Question}, rcode, true
	return m
}

// pack writes an answer for the client. Explanations reach only those who
// speak EDNS: others do not understand an OPT record (RFC 6891 section 7).
func (q *query) pack(m *dns.Msg, extras ...extra) []byte {
	if q.edns {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		opt.SetUDPSize(ednsBytes)
		opt.SetDo(q.do)
		for _, e := range extras {
			if e.text != "" {
				opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: e.code, ExtraText: clip(e.text)})
			}
		}
		m.Extra = append(m.Extra, opt)
		if m.Len() > q.maxSize { // rather no words than no records
			opt.Option = nil
		}
	}
	m.Truncate(q.maxSize)
	b, err := m.Pack()
	if err == nil && len(b) <= q.maxSize {
		return b
	}
	if m.Rcode == dns.RcodeServerFailure {
		return nil // not even that can be written
	}
	return q.pack(q.reply(dns.RcodeServerFailure))
}

// clip shortens a text without cutting a character in two.
func clip(s string) string {
	if len(s) <= maxExtraText {
		return s
	}
	return strings.ToValidUTF8(s[:maxExtraText], "") + "…"
}
