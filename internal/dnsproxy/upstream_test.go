// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestLies holds that nothing but the answer to the question counts, and that
// what else arrives does not end the wait for it.
func TestLies(t *testing.T) {
	for name, lie := range map[string]func(q *dns.Msg) []byte{
		"wrong id":   func(q *dns.Msg) []byte { return changed(t, q, func(m *dns.Msg) { m.Id++ }) },
		"wrong name": func(q *dns.Msg) []byte { return changed(t, q, func(m *dns.Msg) { m.Question[0].Name = "b.example." }) },
		"wrong type": func(q *dns.Msg) []byte { return changed(t, q, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }) },
		"wrong class": func(q *dns.Msg) []byte {
			return changed(t, q, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
		},
		"no question": func(q *dns.Msg) []byte { return changed(t, q, func(m *dns.Msg) { m.Question = nil }) },
		"two questions": func(q *dns.Msg) []byte {
			return changed(t, q, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })
		},
		"the query":      func(q *dns.Msg) []byte { return changed(t, q, func(m *dns.Msg) { m.Response = false }) },
		"another opcode": func(q *dns.Msg) []byte { return changed(t, q, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }) },
		"garbage":        func(*dns.Msg) []byte { return []byte(strings.Repeat("\xc0", 300)) },
		"nothing":        func(*dns.Msg) []byte { return nil },
		"half an answer": func(q *dns.Msg) []byte { b := changed(t, q, func(*dns.Msg) {}); return b[:len(b)-3] },
		"a record short": func(q *dns.Msg) []byte {
			b := changed(t, q, func(*dns.Msg) {})
			binary.BigEndian.PutUint16(b[6:], 2)
			return b
		},
		"a pointer loop": func(q *dns.Msg) []byte {
			b := changed(t, q, func(*dns.Msg) {})
			return append(b[:12], 0xc0, 12, 0, 1, 0, 1)
		},
		"refused, unsaid": func(q *dns.Msg) []byte {
			return changed(t, q, func(m *dns.Msg) { m.Question, m.Answer, m.Rcode = nil, nil, dns.RcodeRefused })
		},
	} {
		t.Run(name, func(t *testing.T) {
			up := raw(t, func(q *dns.Msg) [][]byte { return [][]byte{lie(q), lie(q), good(t, q), good(t, q)} })
			w := serve(t, Options{TryTimeout: 2 * time.Second}, []*resolver{up}, allowlist("a.example"))
			for range 2 { // what was left over of the first is no answer to the second
				if m := w.ask(t, "a.example", dns.TypeA); !slices.Equal(rdata(m.Answer), []string{"192.0.2.1"}) {
					t.Errorf("answer: %v", m)
				}
			}
		})
	}
}

// TestUnusable holds that a server that has no answer is not waited for, or
// waited for no longer than its share, and that the next one is asked.
func TestUnusable(t *testing.T) {
	closed := func(t *testing.T) *resolver {
		pc, l := samePort(t)
		l.Close()
		pc.Close()
		return &resolver{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
	}
	rcode := func(code int) func(t *testing.T) *resolver {
		return func(t *testing.T) *resolver {
			return resolve(t, func(q *dns.Msg, _ string) *dns.Msg {
				m := new(dns.Msg)
				return m.SetRcode(q, code)
			})
		}
	}
	for _, tt := range []struct {
		name string
		bad  func(t *testing.T) *resolver
		code uint16 // alone
		text string
	}{
		{"silent", func(t *testing.T) *resolver { return resolve(t, func(*dns.Msg, string) *dns.Msg { return nil }) }, dns.ExtendedErrorCodeNoReachableAuthority, "no answer"},
		{"closed", closed, dns.ExtendedErrorCodeNetworkError, "connection refused"},
		{"lies", func(t *testing.T) *resolver {
			return raw(t, func(q *dns.Msg) [][]byte { return [][]byte{changed(t, q, func(m *dns.Msg) { m.Id++ })} })
		}, dns.ExtendedErrorCodeNoReachableAuthority, "no answer"},
		{"truncates, without TCP", func(t *testing.T) *resolver {
			return raw(t, func(q *dns.Msg) [][]byte { return [][]byte{changed(t, q, func(m *dns.Msg) { m.Truncated = true })} })
		}, dns.ExtendedErrorCodeNetworkError, "connection refused"},
		{"folds case, without TCP", func(t *testing.T) *resolver {
			return raw(t, func(q *dns.Msg) [][]byte {
				return [][]byte{changed(t, q, func(m *dns.Msg) { m.Question[0].Name = flip(m.Question[0].Name) })}
			})
		}, dns.ExtendedErrorCodeNetworkError, "connection refused"},
		{"closes TCP", closesTCP, dns.ExtendedErrorCodeNetworkError, "EOF"},
		{"servfail", rcode(dns.RcodeServerFailure), dns.ExtendedErrorCodeOther, "answers SERVFAIL"},
		{"refused", rcode(dns.RcodeRefused), dns.ExtendedErrorCodeOther, "answers REFUSED"},
		{"formerr", rcode(dns.RcodeFormatError), dns.ExtendedErrorCodeOther, "answers FORMERR"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad, up := tt.bad(t), resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
			w := serve(t, Options{}, []*resolver{bad, up}, allowlist("a.example"))
			if m := w.ask(t, "a.example", dns.TypeA); !slices.Equal(rdata(m.Answer), []string{"192.0.2.1"}) {
				t.Errorf("answer: %v", m)
			}
			var o Options
			if tt.text == "no answer" {
				o.Timeout = 900 * time.Millisecond
			}
			alone := serve(t, o, []*resolver{bad}, allowlist("a.example"))
			m := alone.ask(t, "a.example", dns.TypeA)
			code, text := explained(m)
			if m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 || code != tt.code || !strings.Contains(text, tt.text) || strings.Contains(text, bad.addr.String()) {
				t.Errorf("EDE %d %q: %v", code, text, m)
			}
			if taught := alone.kernel.taught(); len(taught) > 0 {
				t.Errorf("taught: %+v", taught)
			}
			if d := alone.decision(t); !d.Allowed || !strings.Contains(d.Reason, tt.text) {
				t.Errorf("decision: %+v", d)
			}
		})
	}
}

// TestOverTCP holds when TCP is asked, and that its answer, however large, counts.
func TestOverTCP(t *testing.T) {
	large := make([]string, 0, 2000)
	for i := range cap(large) {
		large = append(large, "$ 60 IN A "+netip.AddrFrom4([4]byte{198, 51, 100, byte(i % 100)}).String())
	}
	for _, tt := range []struct {
		name string
		udp  func(q, m *dns.Msg)
		tcp  func(q, m *dns.Msg)
		n    int
	}{
		{name: "truncated", udp: func(_, m *dns.Msg) { m.Truncated, m.Answer = true, nil }, n: 1},
		{name: "truncated with records", udp: func(_, m *dns.Msg) {
			m.Truncated, m.Answer = true, parseRecords(t, "a.example.", "$ 60 IN A 192.0.2.66")
		}, n: 1},
		{name: "folds case", udp: func(q, m *dns.Msg) {
			m.Question[0].Name, m.Answer = flip(q.Question[0].Name), parseRecords(t, "a.example.", "$ 60 IN A 192.0.2.66")
		}, tcp: func(_, m *dns.Msg) { m.Question[0].Name = "A.EXAMPLE." }, n: 1},
		{name: "larger than asked for", udp: func(_, m *dns.Msg) { m.Answer = parseRecords(t, "a.example.", large[:300]...) }, n: 1},
		{name: "large", udp: func(_, m *dns.Msg) { m.Truncated, m.Answer = true, nil }, tcp: func(_, m *dns.Msg) {
			m.Compress = true
			m.Answer = parseRecords(t, "a.example.", large...)
		}, n: 2000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
				m := records(t, "$ 60 IN A 192.0.2.1")(q, network)
				m.Question = slices.Clone(m.Question)
				if network == "udp" {
					tt.udp(q, m)
				} else if tt.tcp != nil {
					tt.tcp(q, m)
				}
				return m
			})
			w := serve(t, Options{}, []*resolver{up}, allowlist("a.example"))
			m := w.exchangeWith(t, "tcp", questionFor("a.example", dns.TypeA))
			if len(m.Answer) != tt.n || slices.Contains(rdata(m.Answer), "192.0.2.66") {
				t.Errorf("%d records, want %d; %v", len(m.Answer), tt.n, m.Question)
			}
		})
	}
}

// TestAsked holds what an upstream is sent: random id, port and case, 1232
// bytes, nothing of the client's.
func TestAsked(t *testing.T) {
	var mu sync.Mutex
	ports := map[string]bool{}
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	var sockets atomic.Int32
	w := serve(t, Options{Control: func(_, address string, _ syscall.RawConn) error {
		sockets.Add(1)
		mu.Lock()
		defer mu.Unlock()
		ports[address] = true
		return nil
	}}, []*resolver{up}, allowlist("*"))
	name := "abcdefghijklmnopqrstuvwxyz.example"
	q := questionFor(name, dns.TypeA)
	q.IsEdns0().Option = []dns.EDNS0{
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"},
		&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)},
	}
	for range 20 {
		w.exchangeWith(t, "udp", q)
	}
	ids, names := map[uint16]bool{}, map[string]bool{}
	for _, m := range up.queries() {
		ids[m.Id], names[m.Question[0].Name] = true, true
		opt := m.IsEdns0()
		if !strings.EqualFold(m.Question[0].Name, name+".") || !m.RecursionDesired || opt == nil || opt.UDPSize() != 1232 || len(opt.Option) != 0 || len(m.Extra) != 1 {
			t.Errorf("asked %v", m)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < 18 || len(names) < 20 || sockets.Load() < fewSockets || !ports[up.addr.String()] {
		t.Errorf("20 queries: %d ids, %d spellings, %d sockets to %v", len(ids), len(names), sockets.Load(), ports)
	}
}

// TestSpelling holds that a client sees nothing of how its question was spelt
// upstream, also where the answer's names point to it.
func TestSpelling(t *testing.T) {
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		name := q.Question[0].Name
		_, parent, _ := strings.Cut(name, ".")
		m := records(t, "$ 60 IN CNAME b."+parent, "b."+parent+" 60 IN A 192.0.2.1")(q, network)
		m.Compress = true
		return m
	})
	w := serve(t, Options{}, []*resolver{up}, allowlist("*.example"))
	for range 10 {
		m := w.ask(t, "A.abcdefghijklmnop.example", dns.TypeA)
		if len(m.Answer) != 2 || m.Answer[0].Header().Name != "A.abcdefghijklmnop.example." || m.Answer[1].Header().Name != "b.abcdefghijklmnop.example." {
			t.Errorf("answer: %v", m)
		}
	}
}

// TestControl holds that a socket that cannot be exempted is not used.
func TestControl(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{Control: func(string, string, syscall.RawConn) error { return syscall.EPERM }}, []*resolver{up}, allowlist("*"))
	if m := w.ask(t, "a.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure || len(up.queries()) != 0 {
		t.Errorf("answer: %v", m)
	}
}

func TestWithoutEDNS(t *testing.T) {
	for name, refuse := range map[string]func(q *dns.Msg) *dns.Msg{
		"formerr": func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeFormatError) },
		"formerr, no more": func(q *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
			m.Question = nil
			return m
		},
		"not implemented": func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented) },
		"another's version": func(q *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetRcode(q, dns.RcodeBadVers)
			m.SetEdns0(512, false)
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
				if q.IsEdns0() != nil {
					return refuse(q)
				}
				return records(t, "$ 60 IN A 192.0.2.1")(q, network)
			})
			w := serve(t, Options{}, []*resolver{up}, allowlist("*"))
			if m := w.ask(t, "a.example", dns.TypeA); len(m.Answer) != 1 {
				t.Errorf("answer: %v", m)
			}
		})
	}
}

// TestPatience holds that a server that answers late is asked again, and that
// one that failed is asked last for a while.
func TestPatience(t *testing.T) {
	var asked atomic.Int32
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		if asked.Add(1) < 3 {
			return nil
		}
		return records(t, "$ 60 IN A 192.0.2.1")(q, network)
	})
	w := serve(t, Options{TryTimeout: 50 * time.Millisecond}, []*resolver{up}, allowlist("*"))
	if m := w.ask(t, "a.example", dns.TypeA); len(m.Answer) != 1 || asked.Load() < 3 {
		t.Errorf("asked %d times: %v", asked.Load(), m)
	}

	silent := resolve(t, func(*dns.Msg, string) *dns.Msg { return nil })
	w = unhurried(t, Options{TryTimeout: 2 * time.Second}, []*resolver{silent, up}, allowlist("*"))
	for range 5 {
		w.ask(t, "a.example", dns.TypeA)
	}
	if n := len(silent.queries()); n != 1 {
		t.Errorf("the silent server was asked %d times", n)
	}
}

// TestTries holds that no query is asked without end, however soon servers are asked again and however long they are
// waited for.
func TestTries(t *testing.T) {
	silent := []*resolver{resolve(t, func(*dns.Msg, string) *dns.Msg { return nil }), resolve(t, func(*dns.Msg, string) *dns.Msg { return nil })}
	w := serve(t, Options{TryTimeout: time.Microsecond, Timeout: 5 * time.Second}, silent, allowlist("*"))
	m := w.ask(t, "a.example", dns.TypeA)
	first, second := len(silent[0].queries()), len(silent[1].queries())
	if m.Rcode != dns.RcodeServerFailure || first+second != maxTries || first != second {
		t.Errorf("asked %d and %d times: %v", first, second, m)
	}
}

// TestWhatServersSay holds that the reason of an upstream reaches the client.
func TestWhatServersSay(t *testing.T) {
	up := resolve(t, func(q *dns.Msg, _ string) *dns.Msg {
		m := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		m.Extra = []dns.RR{&dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}, Option: []dns.EDNS0{
			&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus, ExtraText: "signature expired"}}}}
		return m
	})
	w := serve(t, Options{}, []*resolver{up}, allowlist("*"))
	if code, text := explained(w.ask(t, "a.example", dns.TypeA)); code != dns.ExtendedErrorCodeDNSBogus || text != "upstream: signature expired" {
		t.Errorf("EDE %d %q", code, text)
	}
}

// TestStopWhileAsking holds that a stop does not wait for an upstream.
func TestStopWhileAsking(t *testing.T) {
	reached := make(chan struct{}, 9)
	up := resolve(t, func(*dns.Msg, string) *dns.Msg { reached <- struct{}{}; return nil })
	w := serve(t, Options{Timeout: time.Minute, TryTimeout: time.Minute}, []*resolver{up}, allowlist("*"))
	ctx, cancel := context.WithCancel(context.Background())
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	socket := newDatagrams(t, pc, index)
	done := make(chan error)
	go func() { done <- w.Serve(ctx, socket) }()
	if _, err := c.Write(packed(t, questionFor("a.example", dns.TypeA))); err != nil {
		t.Fatal(err)
	}
	<-reached
	start := time.Now()
	cancel()
	if err := <-done; err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("stopped after %v: %v", time.Since(start), err)
	}
}

// TestRefusedAtOnce holds that the next server is asked as soon as the kernel says that nobody listens at one, not when that
// one's time is over.
func TestRefusedAtOnce(t *testing.T) {
	pc, l := samePort(t)
	nobody := &resolver{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
	pc.Close()
	l.Close()
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{TryTimeout: time.Hour, Timeout: time.Hour}, []*resolver{nobody, up}, allowlist("*"))
	if m := w.ask(t, "a.example", dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("answer: %v", m)
	}
}
