// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/policy"
)

// bare is a server without sockets, whose upstream answers nothing but what is
// given here.
func bare(t testing.TB, ask asker, policies ...policy.Policy) *world {
	t.Helper()
	w := &world{kernel: &kernel{}}
	w.kernel.set(t, index, policies...)
	var err error
	w.Server, err = New(Options{
		HostAddrs: noAddrs,
		Kernel:    w.kernel,
		Upstreams: func() ([]netip.AddrPort, error) {
			return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.54:53")}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Server.ask = ask
	return w
}

// never fails the test: nothing may be asked.
func never(t testing.TB) asker {
	return func(_ []netip.AddrPort, r *request, _ time.Time, done func(*answer, *failure)) {
		t.Errorf("upstream was asked for %v", r.Question)
		done(nil, &failure{text: "never"})
	}
}

func packed(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMalformed(t *testing.T) {
	w := bare(t, never(t), allowlist("*"))
	good := packed(t, questionFor("a.example", dns.TypeA))
	with := func(change func(b []byte)) []byte {
		b := append([]byte(nil), good...)
		change(b)
		return b
	}
	message := func(change func(m *dns.Msg)) []byte {
		m := questionFor("a.example", dns.TypeA)
		change(m)
		return packed(t, m)
	}
	const silence = -1
	for _, tt := range []struct {
		name  string
		query []byte
		rcode int
		text  string
	}{
		{name: "nothing", query: nil, rcode: silence},
		{name: "less than a header", query: good[:11], rcode: silence},
		{name: "an answer", query: with(func(b []byte) { b[2] |= 0x80 }), rcode: silence},
		{name: "an answer that does not parse", query: with(func(b []byte) { b[2] |= 0x80 })[:20], rcode: silence},
		{name: "a header", query: good[:12], rcode: dns.RcodeFormatError},
		{name: "half", query: good[:20], rcode: dns.RcodeFormatError},
		{name: "a record short", query: good[:len(good)-11], rcode: dns.RcodeFormatError},
		{name: "notify", query: with(func(b []byte) { b[2] |= dns.OpcodeNotify << 3 }), rcode: dns.RcodeNotImplemented},
		{name: "update that does not parse", query: with(func(b []byte) { b[2] |= dns.OpcodeUpdate << 3 })[:13], rcode: dns.RcodeNotImplemented},
		{name: "truncated", query: with(func(b []byte) { b[2] |= 0x2 }), rcode: dns.RcodeFormatError},
		{name: "no question", query: message(func(m *dns.Msg) { m.Question = nil }), rcode: dns.RcodeFormatError},
		{name: "two questions", query: message(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), rcode: dns.RcodeFormatError},
		{name: "an answer in a query", query: message(func(m *dns.Msg) { m.Answer = parseRecords(t, "", "a.example. A 192.0.2.1") }), rcode: dns.RcodeFormatError},
		{name: "two OPT", query: message(func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }), rcode: dns.RcodeFormatError},
		{name: "label that points to itself", query: append(append([]byte(nil), good[:12]...), 0xc0, 12, 0, 1, 0, 1), rcode: dns.RcodeFormatError},
		{name: "EDNS 1", query: message(func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), rcode: dns.RcodeBadVers},
		{name: "chaos", query: message(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), rcode: dns.RcodeRefused, text: "class CH"},
		{name: "any class", query: message(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), rcode: dns.RcodeRefused, text: "class CLASS255"},
		{name: "type 0", query: message(func(m *dns.Msg) { m.Question[0].Qtype = 0 }), rcode: dns.RcodeFormatError},
		{name: "AXFR", query: message(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), rcode: dns.RcodeRefused, text: "type AXFR"},
		{name: "IXFR", query: message(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }), rcode: dns.RcodeRefused, text: "type IXFR"},
		{name: "MAILB", query: message(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMAILB }), rcode: dns.RcodeRefused, text: "type MAILB"},
		{name: "TKEY", query: message(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTKEY }), rcode: dns.RcodeRefused, text: "type TKEY"},
		{name: "OPT", query: message(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeOPT }), rcode: dns.RcodeRefused, text: "type OPT"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reply := w.handle(context.Background(), tt.query, Peer{Index: index}, false)
			if tt.rcode == silence {
				if reply != nil {
					t.Errorf("answered %x", reply)
				}
				return
			}
			m := new(dns.Msg)
			if err := m.Unpack(reply); err != nil {
				t.Fatalf("%x: %v", reply, err)
			}
			if m.Rcode != tt.rcode || !m.Response || m.Id != binary.BigEndian.Uint16(tt.query) || !m.RecursionDesired || m.Opcode != int(tt.query[2]>>3&0xf) {
				t.Errorf("answer: %v", m)
			}
			if _, text := explained(m); text != tt.text {
				t.Errorf("explained by %q, want %q", text, tt.text)
			}
		})
	}
}

// TestSize holds that no answer is larger than its client can take, and that a
// larger one says so.
func TestSize(t *testing.T) {
	var lines []string
	for range 20 {
		lines = append(lines, `$ 60 IN TXT "`+strings.Repeat("x", 100)+`"`)
	}
	w := bare(t, answering(t, dns.RcodeSuccess, lines...), allowlist("*"))
	v4, v6 := netip.MustParseAddrPort("192.0.2.9:999"), netip.MustParseAddrPort("[2001:db8::9]:999")
	for _, tt := range []struct {
		edns      uint16
		stream    bool
		client    netip.AddrPort
		mtu       int // of the device
		limit     int
		truncated bool
	}{
		{0, false, v4, 0, 512, true}, {100, false, v4, 0, 512, true}, {600, false, v4, 0, 600, true}, {1232, false, v4, 0, 1232, true}, {4096, false, v4, 0, 1232, true},
		{0, true, v4, 0, dns.MaxMsgSize, false}, {512, true, v4, 0, dns.MaxMsgSize, false},
		{1232, false, v4, 1500, 1232, true}, {1232, false, v4, 1000, 972, true}, {700, false, v4, 1000, 700, true}, {1232, false, v4, 68, 512, true},
		{1232, false, v6, 1280, 1232, true}, {0, true, v4, 576, dns.MaxMsgSize, false},
	} {
		w.kernel.mu.Lock()
		w.kernel.mtu = tt.mtu
		w.kernel.mu.Unlock()
		q := new(dns.Msg)
		q.SetQuestion("a.example.", dns.TypeTXT)
		if tt.edns > 0 {
			q.SetEdns0(tt.edns, false)
		}
		reply := w.handle(context.Background(), packed(t, q), Peer{Index: index, Client: tt.client}, tt.stream)
		m := new(dns.Msg)
		if err := m.Unpack(reply); err != nil {
			t.Fatal(err)
		}
		if len(reply) > tt.limit || tt.truncated && len(reply) < tt.limit-120 || m.Truncated != tt.truncated || !tt.truncated && len(m.Answer) != len(lines) || (m.IsEdns0() != nil) != (tt.edns > 0) {
			t.Errorf("%+v: %d bytes, truncated %v, %d records", tt, len(reply), m.Truncated, len(m.Answer))
		}
	}
}

// TestLongRefusal holds that an explanation never costs the answer.
func TestLongRefusal(t *testing.T) {
	w := bare(t, never(t), allowlist("a.example"))
	label := strings.Repeat("x", 61)
	q := questionFor(label+"."+label+"."+label+"."+label, dns.TypeA)
	q.IsEdns0().SetUDPSize(512)
	m := new(dns.Msg)
	if err := m.Unpack(w.handle(context.Background(), packed(t, q), Peer{Index: index}, false)); err != nil {
		t.Fatal(err)
	}
	if m.Truncated || m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 {
		t.Errorf("answer: %v", m)
	}
}

// TestFlags holds what of a client's flags and options goes upstream, and what
// of the upstream's comes back.
func TestFlags(t *testing.T) {
	var sent request
	w := bare(t, func(_ []netip.AddrPort, r *request, _ time.Time, done func(*answer, *failure)) {
		sent = *r
		m := records(t, "$ 60 IN A 192.0.2.1", "$ 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example. AAAA", "$ 60 IN RRSIG TXT 8 2 60 20300101000000 20200101000000 1 example. AAAA")(
			&dns.Msg{Question: []dns.Question{r.Question}}, "")
		m.AuthenticatedData, m.Authoritative = true, true
		m.Extra = []dns.RR{&dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}, Option: []dns.EDNS0{
			&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"},
			&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeStaleAnswer, ExtraText: "old"},
		}}}
		done(newAnswer(packed(t, m)), nil)
	}, allowlist("*"))
	for _, do := range []bool{false, true} {
		for _, ad := range []bool{false, true} {
			w.kernel.set(t, index, without)
			q := questionFor("a.example", dns.TypeA)
			if q.CheckingDisabled = do; w.handle(context.Background(), packed(t, q), Peer{Index: index}, false) == nil || sent.cd != do {
				t.Errorf("without a filter sent %+v", sent)
			}
			w.kernel.set(t, index, allowlist("*"))
			q = questionFor("A.Example", dns.TypeA)
			q.CheckingDisabled, q.AuthenticatedData = true, ad
			q.IsEdns0().SetDo(do)
			q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}}
			m := new(dns.Msg)
			if err := m.Unpack(w.handle(context.Background(), packed(t, q), Peer{Index: index}, false)); err != nil {
				t.Fatal(err)
			}
			if sent.cd || sent.ad != ad || sent.do != do || sent.Name != "a.example." {
				t.Errorf("sent %+v", sent)
			}
			records := 1
			if do {
				records = 2
			}
			opt := m.IsEdns0()
			if m.AuthenticatedData != (ad || do) || m.Authoritative || !m.CheckingDisabled || len(m.Answer) != records || opt.Do() != do || len(opt.Option) != 1 {
				t.Errorf("do %v, ad %v: %v", do, ad, m)
			}
			if code, text := explained(m); code != dns.ExtendedErrorCodeStaleAnswer || text != "upstream: old" {
				t.Errorf("EDE %d %q", code, text)
			}
		}
	}
}
