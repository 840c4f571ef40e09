// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/policy"
)

// addresses lists what a client of an answer could connect to, wherever in it
// that stands.
func addresses(m *dns.Msg) []netip.Addr {
	var all []netip.Addr
	add := func(ip []byte) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, a.Unmap())
		}
	}
	hints := func(s *dns.SVCB) {
		for _, kv := range s.Value {
			switch kv := kv.(type) {
			case *dns.SVCBIPv4Hint:
				for _, ip := range kv.Hint {
					add(ip)
				}
			case *dns.SVCBIPv6Hint:
				for _, ip := range kv.Hint {
					add(ip)
				}
			}
		}
	}
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		switch rr := rr.(type) {
		case *dns.A:
			add(rr.A)
		case *dns.AAAA:
			add(rr.AAAA)
		case *dns.SVCB:
			hints(rr)
		case *dns.HTTPS:
			hints(&rr.SVCB)
		}
	}
	return all
}

// checkReply holds what is true of every answer to a query of a filtered attachment.
func checkReply(t *testing.T, w *world, in, reply []byte, limit int) {
	if len(reply) == 0 {
		return
	}
	if len(reply) > limit {
		t.Errorf("%d bytes, at most %d", len(reply), limit)
	}
	if len(in) < headerBytes || in[2]&0x80 != 0 {
		t.Fatalf("answered %x by %x", in, reply)
	}
	m, err := unpack(reply)
	if err != nil {
		t.Fatalf("answered by %x: %v", reply, err)
	}
	if !m.Response || m.Id != binary.BigEndian.Uint16(in) {
		t.Errorf("answered %x by %v", in, m)
	}
	learned := map[netip.Addr]bool{}
	for _, l := range w.kernel.taught() {
		for _, a := range l.Addrs {
			learned[a] = true
			if w.surprising(a) {
				t.Errorf("learned %v", a)
			}
		}
		if l.TTL < w.MinTTL || l.TTL > w.MaxTTL {
			t.Errorf("learned for %v", l.TTL)
		}
		if l.Name != strings.ToLower(l.Name) || strings.HasSuffix(l.Name, ".") || strings.Contains(l.Name, `\`) {
			t.Errorf("learned as %q", l.Name)
		}
	}
	for _, a := range addresses(m) {
		if !learned[a] {
			t.Errorf("%v was not learned: %v", a, m)
		}
	}
	for _, rr := range slices.Concat(m.Answer, m.Ns) {
		if ttl := rr.Header().Ttl; ttl > seconds(w.MaxTTL) {
			t.Errorf("the client holds %v", rr)
		}
	}
}

// FuzzQuery passes anything through the query path of an attachment that may
// ask for good.example and what is below it. Whatever goes upstream is that.
func FuzzQuery(f *testing.F) {
	for _, name := range []string{"good.example", "a.GOOD.example", "evil.good.example", `a\.good.example`, "other.example", ".", "use-application-dns.net"} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeHTTPS, dns.TypeANY, dns.TypeAXFR} {
			f.Add(packed(f, questionFor(name, qtype)), false)
			m := questionFor(name, qtype)
			m.Extra = nil
			f.Add(packed(f, m), true)
		}
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, false)
	p := allowlist("good.example", "*.good.example")
	p.DNS.Deny = rules("evil.good.example")
	f.Fuzz(func(t *testing.T, in []byte, stream bool) {
		w := bare(t, nil, p)
		w.Server.ask = func(_ []netip.AddrPort, r *request, _ time.Time, done func(*answer, *failure)) {
			if r.Name != "good.example." && !strings.HasSuffix(r.Name, ".good.example.") || r.Name == "evil.good.example." ||
				strings.Contains(r.Name, `\`) || r.Name != strings.ToLower(r.Name) || r.Qclass != dns.ClassINET ||
				r.Qtype == dns.TypeANY || r.Qtype == dns.TypeAXFR {
				t.Errorf("%x went upstream as %v", in, r.Question)
			}
			query, err := r.message(nil, true, false)
			if err != nil {
				t.Fatal(err)
			}
			// The name that was judged is the name in the packet.
			if sent, err := unpack(query); err != nil || len(sent.Question) != 1 || sent.Question[0] != r.Question {
				t.Errorf("%v is sent as %v", r.Question, sent)
			}
			answering(t, dns.RcodeSuccess, "$ 60 A 192.0.2.1", "$ 60 A 10.0.0.1")(nil, r, time.Time{}, done)
		}
		limit := ednsBytes
		if stream {
			limit = dns.MaxMsgSize
		}
		checkReply(t, w, in, w.handle(context.Background(), slices.Clone(in), Peer{Index: index}, stream), limit)
	})
}

// FuzzAnswer passes anything that an upstream may send through the filter.
func FuzzAnswer(f *testing.F) {
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeCNAME, dns.TypeTXT, dns.TypeRRSIG}
	for i, lines := range [][]string{
		{"$ 60 A 192.0.2.1", "b.example. 60 A 192.0.2.2", "--", "example. 60 SOA ns.example. h.example. 1 2 3 4 5", "++", "$ 60 A 192.0.2.3"},
		{"$ 60 AAAA ::ffff:192.0.2.1", "$ 60 AAAA 2001:db8::1"},
		{`$ 60 HTTPS 1 . mandatory="ipv4hint" alpn="h2" ipv4hint="192.0.2.1,10.0.0.1" ech="AAAA" ipv6hint="2001:db8::1"`},
		{"$ 60 CNAME b.example.", "b.example. 4294967295 SVCB 1 . ipv4hint=\"192.0.2.1\""},
		{"example. 50 DNAME example.net.", "a.example.net. 60 A 192.0.2.1"},
		chain(5),
		{"$ 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example. AAAA"},
	} {
		for do := range 2 {
			f.Add(answerTo(f, &request{Question: dns.Question{Name: "a.example.", Qtype: types[i%len(types)], Qclass: dns.ClassINET}}, lines...), uint8(i), do == 1)
		}
	}
	policies := []policy.Policy{allowlist("a.example"), denylist("evil.example")}
	f.Fuzz(func(t *testing.T, wire []byte, which uint8, do bool) {
		if _, err := unpack(wire); err != nil {
			return
		}
		w := bare(t, func(_ []netip.AddrPort, _ *request, _ time.Time, done func(*answer, *failure)) {
			done(newAnswer(wire), nil)
		}, policies...)
		q := questionFor("A.example", types[int(which)%len(types)])
		q.IsEdns0().SetDo(do)
		in := packed(t, q)
		checkReply(t, w, in, w.handle(context.Background(), in, Peer{Index: index}, which%2 == 0), dns.MaxMsgSize)
	})
}

// answerTo is a server's answer with those records.
func answerTo(t testing.TB, r *request, lines ...string) (wire []byte) {
	answering(t, dns.RcodeSuccess, lines...)(nil, r, time.Time{}, func(a *answer, _ *failure) { wire = a.wire })
	return wire
}

// FuzzMatch passes anything through what reads an upstream's datagrams.
func FuzzMatch(f *testing.F) {
	r := &request{Question: dns.Question{Name: "a.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
	sent, err := r.message(nil, true, true)
	if err != nil {
		f.Fatal(err)
	}
	wire := answerTo(f, r, "$ 60 A 192.0.2.1")
	f.Add(wire, true)
	f.Add(wire[:12], false)
	f.Add(wire[:15], true)
	f.Fuzz(func(t *testing.T, in []byte, udp bool) {
		in = slices.Clone(in)
		copy(in, sent[:2])
		ok, err := match(sent, in, udp)
		if !ok {
			return
		}
		m, failed := unpack(in)
		if failed != nil {
			return // which the caller finds
		}
		if err != nil || !m.Response || len(m.Question) != 1 || m.Question[0].Name != "a.example." {
			t.Errorf("%v, %v", m, err)
		}
	})
}
