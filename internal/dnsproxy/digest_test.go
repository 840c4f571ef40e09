// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func everything(netip.Addr) bool { return true }

// TestDigest holds which answers are of the common kind.
func TestDigest(t *testing.T) {
	const soa = "example. 3600 SOA ns.example. h.example. 1 2 3 4 60"
	for _, tt := range []struct {
		qtype uint16
		lines []string
		want  bool
	}{
		{dns.TypeA, []string{"$ 60 A 192.0.2.1", "$ 60 A 192.0.2.2"}, true},
		{dns.TypeA, []string{"$ 60 A 10.0.0.1", "$ 60 A 192.0.2.1"}, true},
		{dns.TypeA, []string{"b.example. 60 A 10.0.0.1", "$ 60 A 192.0.2.1"}, true},
		{dns.TypeA, []string{"c.example. 60 CNAME d.example.", "d.example. 60 A 192.0.2.1", "$ 60 CNAME c.example."}, true},
		{dns.TypeA, []string{"$ 60 A 192.0.2.1", "b.example. 60 A 192.0.2.2", "--", "example. 60 NS ns.example.", "++", "ns.example. 60 A 192.0.2.3"}, true},
		{dns.TypeAAAA, []string{"--", soa}, true},
		{dns.TypeHTTPS, []string{"--", soa}, true},
		{dns.TypeAAAA, []string{"--", ". 60 SOA ns. h. 1 2 3 4 60"}, true},
		{dns.TypeAAAA, []string{"$ 60 CNAME b.a.example.", "--", "a.example. 60 SOA ns.example. h.example. 1 2 3 4 60"}, true},
		{dns.TypeA, []string{"--", "other. 60 SOA ns.example. h.example. 1 2 3 4 60"}, true},
		{dns.TypeA, []string{"--", soa, soa}, false},
		{dns.TypeA, []string{"$ 60 A 192.0.2.1", "$ 60 TXT x"}, false},
		{dns.TypeHTTPS, []string{`$ 60 HTTPS 1 . ech="AAAA"`}, false},
		{dns.TypeA, []string{"example. 50 DNAME example.net."}, false},
		{dns.TypeA, []string{"$ 60 A 192.0.2.1", "$ 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example. AAAA"}, false},
		{dns.TypeCNAME, []string{"$ 60 CNAME b.example."}, false},
		{dns.TypeA, []string{`$ 60 CNAME b\.c.example.`, `b\.c.example. 60 A 192.0.2.1`}, false},
		{dns.TypeA, []string{"$ 60 CH A 192.0.2.1"}, false},
		{dns.TypeA, []string{"$ 60 CNAME b.example.", "b.example. 60 CNAME a.example."}, false},
		{dns.TypeA, chain(maxChain), true},
		{dns.TypeA, chain(maxChain + 1), false},
	} {
		wire := answerTo(t, &request{Question: dns.Question{Name: "a.example.", Qtype: tt.qtype, Qclass: dns.ClassINET}}, tt.lines...)
		if p := digest(wire); (p != nil) != tt.want {
			t.Errorf("%s %q: %+v", dns.Type(tt.qtype), tt.lines, p)
		}
		sameAsFilter(t, wire)
	}
}

// sameAsFilter holds that what is made of a digest is what filter makes of the message.
func sameAsFilter(t *testing.T, wire []byte) {
	t.Helper()
	p := digest(slices.Clone(wire))
	if p == nil {
		return
	}
	m, err := unpack(wire)
	if err != nil {
		t.Fatalf("digested what is no message: %v, %x", err, wire)
	}
	asked := questionFor(m.Question[0].Name, m.Question[0].Qtype)
	asked.Question[0].Name = m.Question[0].Name
	asked.CheckingDisabled = true
	q, _ := parse(packed(t, asked), Peer{}, true)
	if q == nil {
		return // nobody asks for that
	}
	if life := time.Duration(p.life) * time.Second; p.life > 0 && life != lifeOf(m) && !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		h := rr.Header() // of what is left out lifeOf knows nothing
		return canonical(h.Name) != q.name || h.Rrtype != q.Qtype && h.Rrtype != dns.TypeCNAME
	}) {
		t.Errorf("kept for %v, not %v: %v", life, lifeOf(m), m)
	}
	(&found{}).count(m)
	f, err := filter(q, m, everything)
	if err != nil {
		t.Fatalf("digested what is refused: %v, %v", err, m)
	}
	if !slices.Equal(p.addrs, f.addrs) || !slices.Equal(p.aliases, f.aliases) || p.ttl != f.ttl || f.altered {
		t.Errorf("%+v\nfiltered %+v\nof %v", p, f, m)
	}
	if p.surprises != slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		addr, ok := addressOf(rr)
		return ok && slices.ContainsFunc(f.answer, func(kept dns.RR) bool { return kept == rr }) && reserved(addr)
	}) {
		t.Errorf("surprises: %v, %v", p.surprises, m)
	}
	made, err := unpack(p.answer(q, &found{}, maxTTL))
	if err != nil {
		t.Fatalf("made no message of %v: %v", m, err)
	}
	if made.Rcode != m.Rcode || made.Id != q.id || !made.CheckingDisabled || !made.RecursionAvailable || made.Authoritative || made.IsEdns0() == nil || len(made.Extra) != 1 {
		t.Errorf("%v\nmade of %v", made, m)
	}
	text := func(rrs []dns.RR) string {
		var b strings.Builder
		for _, rr := range rrs {
			b.WriteString(strings.ToLower(rr.String()) + "\n")
		}
		return b.String()
	}
	if text(made.Answer) != text(f.answer) || text(made.Ns) != text(f.authority) {
		t.Errorf("made\n%s%s\nfiltered\n%s%s", text(made.Answer), text(made.Ns), text(f.answer), text(f.authority))
	}
	aged, err := unpack(p.answer(q, &found{age: 50 * time.Second}, 20))
	if err != nil {
		t.Fatal(err)
	}
	for i, rr := range append(aged.Answer, aged.Ns...) {
		was := append(made.Answer, made.Ns...)[i].Header().Ttl
		if want := min(was-min(was, 50), 20); rr.Header().Ttl != want {
			t.Errorf("after 50 s of %d: %d", was, rr.Header().Ttl)
		}
	}
}

func addressOf(rr dns.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		addr, ok := netip.AddrFromSlice(rr.A)
		return addr.Unmap(), ok
	case *dns.AAAA:
		return netip.AddrFromSlice(rr.AAAA)
	}
	return netip.Addr{}, false
}

// FuzzDigest passes anything that an upstream may send through what makes answers
// of the common kind.
func FuzzDigest(f *testing.F) {
	for _, lines := range [][]string{
		{"$ 60 A 192.0.2.1", "b.example. 60 A 192.0.2.2", "--", "example. 60 SOA ns.example. h.example. 1 2 3 4 5", "++", "$ 60 A 192.0.2.3"},
		{"$ 60 CNAME b.example.", "b.example. 4294967295 A 192.0.2.1", "$ 60 A 192.0.2.1"},
		{"--", "a.example. 60 SOA ns.example. h.example. 1 2 3 4 5", "example. 60 NS ns.example."},
		chain(5),
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS} {
			f.Add(answerTo(f, &request{Question: dns.Question{Name: "a.example.", Qtype: qtype, Qclass: dns.ClassINET}}, lines...))
		}
	}
	f.Fuzz(func(t *testing.T, wire []byte) { sameAsFilter(t, wire) })
}

// FuzzRead passes anything that a client may send through what reads queries of
// the common kind.
func FuzzRead(f *testing.F) {
	m := questionFor("a.EXAMPLE", dns.TypeA)
	f.Add(packed(f, m))
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}}
	f.Add(packed(f, m))
	m.IsEdns0().SetDo(true)
	m.IsEdns0().SetVersion(1)
	f.Add(packed(f, m))
	m.Extra, m.CheckingDisabled, m.AuthenticatedData = nil, true, true
	f.Add(packed(f, m))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerBytes || b[2]&0x80 != 0 || b[2]>>3&0xf != dns.OpcodeQuery {
			return
		}
		got := &query{maxSize: dns.MinMsgSize}
		if !got.read(b) {
			return
		}
		want := &query{maxSize: dns.MinMsgSize}
		if rcode := want.readAny(b); rcode != dns.RcodeSuccess {
			t.Fatalf("read what is none: %x", b)
		}
		if got.Question != want.Question || got.name != want.name || got.plain != want.plain || string(got.wire) != string(want.wire) ||
			got.id != want.id || got.rd != want.rd || got.ad != want.ad || got.cd != want.cd ||
			got.edns != want.edns || got.do != want.do || got.version != want.version || got.maxSize != want.maxSize {
			t.Errorf("%x\n%+v\n%+v", b, got, want)
		}
	})
}
