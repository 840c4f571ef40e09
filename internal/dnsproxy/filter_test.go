// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/policy"
)

// answering is an upstream that answers everything with the same sections.
// Lines after "--" are the authority section, after "++" the additional.
func answering(t testing.TB, rcode int, lines ...string) asker {
	return func(_ []netip.AddrPort, r *request, _ time.Time, done func(*answer, *failure)) {
		m := new(dns.Msg)
		m.SetReply(&dns.Msg{Question: []dns.Question{r.Question}})
		m.Rcode = rcode
		section := &m.Answer
		for _, line := range lines {
			switch line {
			case "--":
				section = &m.Ns
			case "++":
				section = &m.Extra
			default:
				*section = append(*section, parseRecords(t, r.Name, line)...)
			}
		}
		done(newAnswer(packed(t, m)), nil)
	}
}

// resolved passes one query through w.
func resolved(t testing.TB, w *world, name string, qtype uint16, do bool) *dns.Msg {
	t.Helper()
	q := questionFor(name, qtype)
	q.IsEdns0().SetDo(do)
	m := new(dns.Msg)
	if err := m.Unpack(w.handle(context.Background(), packed(t, q), Peer{Index: index}, true)); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFilter(t *testing.T) {
	const sig = " 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example. AAAA"
	for _, tt := range []struct {
		name     string
		qtype    uint16 // A
		do       bool
		rcode    int
		upstream []string
		answer   []string // rdata
		ns       int
		learned  []string
		ttl      time.Duration
		fails    string
	}{
		{
			name:     "unrelated records",
			upstream: []string{"$ 60 A 192.0.2.1", "b.example. 60 A 192.0.2.2", "evil.example. 60 CNAME a.example.", "--", "example. 60 NS ns.example.", "++", "ns.example. 60 A 192.0.2.3", "$ 60 A 192.0.2.4"},
			answer:   []string{"192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: time.Minute,
		},
		{
			name:     "other types",
			upstream: []string{"$ 60 A 192.0.2.1", "$ 60 AAAA 2001:db8::1", `$ 60 TXT "x"`},
			answer:   []string{"192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: time.Minute,
		},
		{
			name:     "chain, in any order and case",
			upstream: []string{"C.example. 300 A 192.0.2.3", "b.Example. 40 CNAME c.example.", "$ 300 CNAME B.example.", "$ 60 A 192.0.2.1", "b.example. 60 A 192.0.2.2"},
			answer:   []string{"B.example.", "c.example.", "192.0.2.3"}, learned: []string{"192.0.2.3"}, ttl: 40 * time.Second,
		},
		{
			name:     "chain without end",
			upstream: []string{"$ 60 CNAME b.example.", "c.example. 60 A 192.0.2.3"},
			answer:   []string{"b.example."},
		},
		{
			name:     "two aliases of one name",
			upstream: []string{"$ 60 CNAME b.example.", "$ 60 CNAME c.example.", "c.example. 60 A 192.0.2.3", "b.example. 60 A 192.0.2.2"},
			answer:   []string{"b.example.", "192.0.2.2"}, learned: []string{"192.0.2.2"}, ttl: time.Minute,
		},
		{name: "circle", upstream: []string{"$ 60 CNAME b.example.", "b.example. 60 CNAME a.example.", "a.example. 60 A 192.0.2.1"}, fails: "the aliases go round in a circle"},
		{name: "itself", upstream: []string{"a.example. 60 CNAME a.example."}, fails: "the aliases go round in a circle"},
		{name: "long chain", upstream: chain(17), fails: "more than 16 aliases in a row"},
		{name: "chain", upstream: chain(16), answer: nil, learned: []string{"192.0.2.1"}, ttl: time.Minute},
		{
			name:     "DNAME",
			upstream: []string{"example. 50 DNAME example.net.", "$ 60 CNAME a.example.net.", "a.example.net. 60 A 192.0.2.1"},
			answer:   []string{"example.net.", "a.example.net.", "192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: 50 * time.Second,
		},
		{
			name:     "DNAME without its CNAME",
			upstream: []string{"example. 50 DNAME example.net.", "a.example.net. 60 A 192.0.2.1"},
			answer:   []string{"example.net.", "a.example.net.", "192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: 50 * time.Second,
		},
		{
			name:     "DNAME that is not the alias's",
			upstream: []string{"example. 50 DNAME example.net.", "$ 60 CNAME b.example.org.", "b.example.org. 60 A 192.0.2.1", "a.example.net. 60 A 192.0.2.2"},
			answer:   []string{"b.example.org.", "192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: time.Minute,
		},
		{name: "DNAME to a name that is too long", upstream: []string{"example. 50 DNAME " + strings.Repeat(strings.Repeat("x", 63)+".", 3) + strings.Repeat("x", 60) + "."}, answer: nil, fails: "a DNAME leads from a.example to a name that is too long", qtype: dns.TypeA},
		{name: "DNAME at the name", upstream: []string{"$ 50 DNAME example.net.", "example.net. 60 A 192.0.2.1"}, answer: []string{}},
		{
			name: "CNAME asked for", qtype: dns.TypeCNAME,
			upstream: []string{"$ 60 CNAME b.example.", "b.example. 60 CNAME c.example."}, answer: []string{"b.example."},
		},
		{
			name: "no address asked for", qtype: dns.TypeMX,
			upstream: []string{"$ 60 MX 1 mail.example.", "++", "mail.example. 60 A 192.0.2.1"}, answer: []string{"1 mail.example."},
		},
		{
			name: "hints", qtype: dns.TypeHTTPS,
			upstream: []string{`$ 60 HTTPS 1 . alpn="h2" ipv4hint="192.0.2.1,10.0.0.1" ech="AAAA" ipv6hint="2001:db8::1"`, `$ 60 HTTPS 2 svc.example. ipv4hint="127.0.0.1"`, `b.example. 60 HTTPS 1 . ipv4hint="192.0.2.2"`},
			answer:   []string{`1 . alpn="h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"`, `2 svc.example.`},
			learned:  []string{"192.0.2.1", "2001:db8::1"}, ttl: time.Minute,
		},
		{
			name: "hints of a service", qtype: dns.TypeSVCB,
			upstream: []string{`$ 60 CNAME b.example.`, `b.example. 31 SVCB 1 . ipv4hint="192.0.2.2"`, `$ 60 SVCB 1 . ipv4hint="192.0.2.1"`},
			answer:   []string{"b.example.", `1 . ipv4hint="192.0.2.2"`}, learned: []string{"192.0.2.2"}, ttl: 31 * time.Second,
		},
		{
			name: "alias mode", qtype: dns.TypeHTTPS,
			upstream: []string{`$ 60 HTTPS 0 svc.example.`, "++", "svc.example. 60 A 192.0.2.1"}, answer: []string{"0 svc.example."},
		},
		{
			name: "ech is mandatory", qtype: dns.TypeHTTPS,
			upstream: []string{`$ 60 HTTPS 1 . mandatory="ech" ech="AAAA" ipv4hint="192.0.2.1"`, `$ 60 HTTPS 2 . alpn="h2"`}, answer: []string{`2 . alpn="h2"`},
			learned: nil,
		},
		{name: "short TTL", upstream: []string{"$ 0 A 192.0.2.1"}, answer: []string{"192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: 30 * time.Second},
		{name: "long TTL", upstream: []string{"$ 86400 A 192.0.2.1"}, answer: []string{"192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: time.Hour},
		{name: "no TTL at all", upstream: []string{"$ 4294967295 A 192.0.2.1"}, answer: []string{"192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: 30 * time.Second},
		{name: "another class", upstream: []string{"$ 60 CH A 192.0.2.1", "$ 60 IN A 192.0.2.2"}, answer: []string{"192.0.2.2"}, learned: []string{"192.0.2.2"}, ttl: time.Minute},
		{name: "twice", upstream: []string{"$ 60 A 192.0.2.1", "$ 60 A 192.0.2.1"}, answer: []string{"192.0.2.1", "192.0.2.1"}, learned: []string{"192.0.2.1"}, ttl: time.Minute},
		{name: "no such name", rcode: dns.RcodeNameError, upstream: []string{"--", "example. 60 SOA ns.example. h.example. 1 2 3 4 5", "other. 60 SOA ns.example. h.example. 1 2 3 4 5", "x.example. 60 NSEC y.example. A"}, answer: []string{}, ns: 1},
		{name: "no such name, proved", do: true, rcode: dns.RcodeNameError, upstream: []string{"--", "example. 60 SOA ns.example. h.example. 1 2 3 4 5", "x.example. 60 NSEC y.example. A", "example. 60 NS ns.example.", "x.example." + strings.Replace(sig, "RRSIG A", "RRSIG NSEC", 1)}, answer: []string{}, ns: 3},
		{name: "signed", do: true, upstream: []string{"$ 60 A 192.0.2.1", "$" + sig, "b.example." + sig}, answer: []string{"192.0.2.1", sig[len(" 60 IN RRSIG "):]}, learned: []string{"192.0.2.1"}, ttl: time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := bare(t, answering(t, tt.rcode, tt.upstream...), denylist("evil.example"))
			if tt.qtype == 0 {
				tt.qtype = dns.TypeA
			}
			m := resolved(t, w, "a.example", tt.qtype, tt.do)
			if _, text := explained(m); tt.fails != "" {
				if m.Rcode != dns.RcodeServerFailure || text != tt.fails || len(m.Answer) > 0 {
					t.Errorf("answer: %v", m)
				}
				if taught := w.kernel.taught(); len(taught) > 0 {
					t.Errorf("taught: %+v", taught)
				}
				return
			}
			if m.Rcode != tt.rcode || tt.answer != nil && !slices.Equal(rdata(m.Answer), tt.answer) || len(m.Ns) != tt.ns || len(m.Extra) != 1 {
				t.Errorf("answer: %v\nwant %q", m, tt.answer)
			}
			for _, rr := range slices.Concat(m.Answer, m.Ns) {
				if ttl := rr.Header().Ttl; time.Duration(ttl)*time.Second > max(tt.ttl, time.Minute) {
					t.Errorf("the client holds %v for %d s", rr, ttl)
				}
			}
			taught := w.kernel.taught()
			if len(tt.learned) == 0 {
				if len(taught) != 0 {
					t.Errorf("taught: %+v", taught)
				}
				return
			}
			if len(taught) != 1 || taught[0].TTL != tt.ttl || !slices.Equal(taught[0].Addrs, addrs(tt.learned...)) || taught[0].Name != "a.example" {
				t.Errorf("taught: %+v", taught)
			}
		})
	}
}

// chain is n aliases and an address at their end.
func chain(n int) []string {
	lines := []string{"$ 60 CNAME n1.example."}
	name := func(i int) string { return "n" + strings.Repeat("x", i) + ".example." }
	lines[0] = "$ 60 CNAME " + name(1)
	for i := 1; i < n; i++ {
		lines = append(lines, name(i)+" 60 CNAME "+name(i+1))
	}
	return append(lines, name(n)+" 60 A 192.0.2.1")
}

// TestCloaked holds that an alias gets nobody past a deny rule, unless a rule
// speaks of the question itself.
func TestCloaked(t *testing.T) {
	up := []string{"$ 60 CNAME x.tracker.example.", "x.tracker.example. 60 A 192.0.2.1"}
	named := denylist("*.tracker.example")
	named.DNS.Allow = rules("a.example")
	for _, tt := range []struct {
		policies []policy.Policy
		text     string
	}{
		{[]policy.Policy{denylist("*.tracker.example")}, "blocked by netfence: deny rule *.tracker.example, of which it is an alias"},
		{[]policy.Policy{allowlist("a.example"), denylist("*.tracker.example")}, "blocked by netfence: deny rule *.tracker.example, of which it is an alias"},
		{[]policy.Policy{named}, ""},
		{[]policy.Policy{allowlist("a.example")}, ""},
	} {
		w := bare(t, answering(t, dns.RcodeSuccess, up...), tt.policies...)
		m := resolved(t, w, "a.example", dns.TypeA, false)
		if _, text := explained(m); text != tt.text || (m.Rcode == dns.RcodeNameError) != (text != "") || (len(w.kernel.taught()) == 0) != (text != "") {
			t.Errorf("%q, want %q: %v", text, tt.text, m)
		}
	}
}
