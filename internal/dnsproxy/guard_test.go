// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/policy"
)

func TestSurprising(t *testing.T) {
	s, err := New(Options{
		Kernel: &kernel{}, Upstreams: func() ([]netip.AddrPort, error) { return nil, nil },
		HostAddrs: func() ([]netip.Addr, error) {
			return addrs("203.0.113.7", "::ffff:203.0.113.8", "2001:db8:1::7"), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]bool{
		"0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.128.0.1 169.254.169.254 172.16.0.1 172.31.255.255":                      true,
		"192.0.0.170 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255":                                             true,
		":: ::1 ::192.0.2.1 ::ffff:192.0.2.1 ::ffff:10.0.0.1 ::ffff:0:192.0.2.1 64:ff9b::192.0.2.1 64:ff9b:1::1 100::1 2001::1 2002::1":                           true,
		"fc00::1 fd00:ec2::254 fd4e:4644:4e53::1 fe80::1 fec0::1 ff02::1 203.0.113.7 203.0.113.8 2001:db8:1::7":                                                   true,
		"192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255":                                false,
		"128.0.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 198.17.255.255 198.20.0.0 223.255.255.255 2001:4860::1 2600::1 64:ff9c::1 2001:1::1 101::": false,
	} {
		for addr := range strings.FieldsSeq(list) {
			if got := s.surprising(netip.MustParseAddr(addr)); got != want {
				t.Errorf("%s: %v, want %v", addr, got, want)
			}
		}
	}
}

// TestHostAddrs holds that the guard stays closed while the host's addresses
// cannot be read.
func TestHostAddrs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fails error
		h := hostAddrs{read: func() ([]netip.Addr, error) {
			if fails != nil {
				return nil, fails
			}
			return addrs("203.0.113.7"), nil
		}}
		other, own := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("203.0.113.7")
		fails = errors.New("too many open files")
		if !h.has(other) {
			t.Error("unknown addresses pass")
		}
		fails = nil
		for range 3 {
			if h.has(other) || !h.has(own) {
				t.Error("the host's address passes, or another does not")
			}
			fails = errors.New("too many open files")
			<-time.After(time.Minute)
		}
	})
}

// TestHostAddrsTakeLong holds that nobody but one waits while the host's addresses are read anew, and that without any
// known nobody waits for ever.
func TestHostAddrsTakeLong(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	reading, held := make(chan struct{}, 1), make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	defer release()
	var reads atomic.Int32
	w := serve(t, Options{HostAddrs: func() ([]netip.Addr, error) {
		if reads.Add(1) > 1 {
			reading <- struct{}{}
			<-held
		}
		return addrs("203.0.113.7"), nil
	}}, []*resolver{up}, allowlist("*"))
	w.host.last.Store(&hostSnapshot{at: time.Now().Add(-3 * hostsFor / 2), addrs: addrs("203.0.113.7")})
	waits := &dns.Conn{Conn: dial(t, "udp", w.addr)}
	if err := waits.WriteMsg(questionFor("first.example", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	<-reading
	for i := range 3 {
		if m := w.ask(t, fmt.Sprintf("n%d.example", i), dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("answer: %v", m)
		}
	}
	release()
	if m, err := waits.ReadMsg(); err != nil || len(m.Answer) != 1 || reads.Load() != 2 {
		t.Errorf("who had them read: %v, %v; %d reads", m, err, reads.Load())
	}

	w = serve(t, Options{HostAddrs: func() ([]netip.Addr, error) { return nil, errors.New("too many open files") }}, []*resolver{up}, allowlist("*"))
	if m := w.ask(t, "a.example", dns.TypeA); len(m.Answer) != 0 {
		t.Errorf("unknown addresses pass: %v", m)
	}
}

func TestGuard(t *testing.T) {
	private := allowlist("a.example")
	private.DNS.Allow[0].Private = true
	static := allowlist("a.example")
	static.Allow = []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/24")}}
	plain := allowlist("a.example")
	for _, tt := range []struct {
		name     string
		options  Options
		policies []policy.Policy
		upstream []string
		answer   []string
		removed  string
		learned  string // by each; "": all of the answer by all
	}{
		{name: "plain", policies: []policy.Policy{plain}, upstream: []string{"10.0.0.1"}, answer: []string{}, removed: "10.0.0.1"},
		{name: "some", policies: []policy.Policy{plain}, upstream: []string{"192.0.2.1", "127.0.0.1", "169.254.169.254"}, answer: []string{"192.0.2.1"}, removed: "127.0.0.1"},
		{name: "private", policies: []policy.Policy{private}, upstream: []string{"10.0.0.1", "127.0.0.1"}, answer: []string{"10.0.0.1", "127.0.0.1"}},
		{name: "static rule", policies: []policy.Policy{static}, upstream: []string{"10.0.0.1", "10.0.1.1"}, answer: []string{"10.0.0.1"}, removed: "10.0.1.1", learned: "nobody"},
		{name: "static rule and an address for all", policies: []policy.Policy{static}, upstream: []string{"10.0.0.1", "192.0.2.1"}, answer: []string{"10.0.0.1", "192.0.2.1"}, learned: "a[192.0.2.1]"},
		{name: "configuration", options: Options{AllowPrivateAnswers: true}, policies: []policy.Policy{plain}, upstream: []string{"10.0.0.1"}, answer: []string{"10.0.0.1"}},
		{name: "each in its way", policies: []policy.Policy{private, static}, upstream: []string{"10.0.0.1"}, answer: []string{"10.0.0.1"}, learned: "a[10.0.0.1]"},
		{name: "not all", policies: []policy.Policy{private, plain}, upstream: []string{"10.0.0.1"}, answer: []string{}, removed: "10.0.0.1"},
		{name: "not all, but disabled", policies: []policy.Policy{private, without}, upstream: []string{"10.0.0.1"}, answer: []string{"10.0.0.1"}},
		{name: "control plane's leave, upstream's address", options: Options{Remote: answers(RemoteAnswer{Allow: true, Learn: true})}, policies: []policy.Policy{byProxy}, upstream: []string{"10.0.0.1"}, answer: []string{}, removed: "10.0.0.1"},
		{name: "control plane's own, to a rule's surprise", options: Options{Remote: answers(RemoteAnswer{Allow: true, Learn: true, Addrs: addrs("10.0.0.1", "192.0.2.1")})}, policies: []policy.Policy{byProxy, plain}, answer: []string{"192.0.2.1"}, removed: "10.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var lines []string
			for _, a := range tt.upstream {
				lines = append(lines, "$ 60 IN A "+a)
			}
			up := resolve(t, records(t, lines...))
			w := serve(t, tt.options, []*resolver{up}, tt.policies...)
			m := w.ask(t, "a.example", dns.TypeA)
			if m.Rcode != dns.RcodeSuccess || !slices.Equal(rdata(m.Answer), tt.answer) {
				t.Errorf("answer: %v", m)
			}
			code, text := explained(m)
			want := ""
			if tt.removed != "" {
				want = fmt.Sprintf("netfence removed %s from the answer: private, reserved or the host's own (a rule that allows the address, or private: true on the name's, lets it through)", tt.removed)
				if code != dns.ExtendedErrorCodeBlocked || len(tt.answer) == 0 && len(m.Ns) != 1 {
					t.Errorf("EDE %d: %v", code, m)
				}
			}
			if text != want {
				t.Errorf("explained by %q", text)
			}
			learned := ""
			for _, l := range w.kernel.taught() {
				learned += l.Member.ID + fmt.Sprint(l.Addrs)
			}
			if tt.learned == "" && len(tt.answer) > 0 {
				for i, p := range tt.policies {
					if p.DNS.Mode != policy.DNSDisabled {
						tt.learned += string(rune('a'+i)) + fmt.Sprint(tt.answer)
					}
				}
			}
			if learned != strings.TrimPrefix(tt.learned, "nobody") {
				t.Errorf("learned %s, want %s", learned, tt.learned)
			}
		})
	}
}
