// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/policy"
)

func TestAllowed(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1", "$ 90 IN A 192.0.2.2"))
	w := serve(t, Options{}, []*resolver{up}, policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{
		Mode:  policy.DNSAllowlist,
		Allow: []policy.DomainRule{{Domain: "good.example", Ports: []policy.Ports{{First: 443, Last: 443, Protocol: policy.TCP}}}},
	}})
	m := w.ask(t, "gOOd.eXample", dns.TypeA)
	if got := rdata(m.Answer); m.Rcode != dns.RcodeSuccess || !slices.Equal(got, []string{"192.0.2.1", "192.0.2.2"}) {
		t.Errorf("answer: %v", m)
	}
	for _, rr := range m.Answer {
		if rr.Header().Name != "gOOd.eXample." {
			t.Errorf("owner %s is not spelt as the question", rr.Header().Name)
		}
	}
	taught := w.kernel.taught()
	if len(taught) != 1 || taught[0].Name != "good.example" || taught[0].TTL != time.Minute || taught[0].Member.ID != "a" ||
		!slices.Equal(taught[0].Addrs, addrs("192.0.2.1", "192.0.2.2")) || len(taught[0].Grant.Ports) != 1 {
		t.Errorf("taught: %+v", taught)
	}
	if d := w.decision(t); !d.Allowed || d.Name != "good.example" || d.Type != "A" || d.Reason != "allow rule good.example ports 443/tcp" ||
		!slices.Equal(d.Learned, addrs("192.0.2.1", "192.0.2.2")) {
		t.Errorf("decision: %+v", d)
	}
	if c := w.Counts("a"); c != (Counts{Allowed: 1}) {
		t.Errorf("counts: %+v", c)
	}
	w.Forget("a")
	if c := w.Counts("a"); c != (Counts{}) {
		t.Errorf("counts of the forgotten: %+v", c)
	}
}

// TestForgottenInFlight holds that a query which outlives its attachment leaves
// no account behind.
func TestForgottenInFlight(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{}, []*resolver{up}, allowlist("*"))
	w.kernel.refusing(func() error {
		w.kernel.mu.Lock()
		delete(w.kernel.chains, index)
		w.kernel.mu.Unlock()
		w.Forget("a")
		return errors.New("not attached")
	})
	if m := w.ask(t, "a.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer: %v", m)
	}
	w.ledger.accounts.Range(func(id, _ any) bool {
		t.Errorf("%v is still accounted for", id)
		return true
	})
}

// TestRefused holds that a refusal explains itself and that no upstream hears of it.
func TestRefused(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	deny := allowlist("*.example.org")
	deny.DNS.Deny = rules("evil.example.org")
	refusing := deny
	refusing.DNS.RefuseWith = policy.RefuseRefused
	nxdomain := deny
	nxdomain.DNS.RefuseWith = policy.RefuseNXDomain
	for _, tt := range []struct {
		name     string
		query    string
		qtype    uint16
		standard policy.RefuseCode
		policies []policy.Policy
		rcode    int
		text     string
	}{
		{name: "deny rule", query: "evil.example.org", policies: []policy.Policy{deny}, text: "blocked by netfence: deny rule evil.example.org"},
		{name: "no rule", query: "example.org", policies: []policy.Policy{deny}, text: "blocked by netfence: no rule allows example.org"},
		{name: "any type", query: "example.org", qtype: dns.TypeTXT, policies: []policy.Policy{deny}, text: "blocked by netfence: no rule allows example.org"},
		{name: "ANY", query: "example.org", qtype: dns.TypeANY, policies: []policy.Policy{deny}, text: "blocked by netfence: no rule allows example.org"},
		{name: "the root", query: ".", qtype: dns.TypeNS, policies: []policy.Policy{deny}, text: "blocked by netfence: no rule allows ."},
		{name: "policy says refused", query: "evil.example.org", policies: []policy.Policy{refusing}, rcode: dns.RcodeRefused, text: "blocked by netfence: deny rule evil.example.org"},
		{name: "configuration says refused", query: "evil.example.org", standard: policy.RefuseRefused, policies: []policy.Policy{deny}, rcode: dns.RcodeRefused, text: "blocked by netfence: deny rule evil.example.org"},
		{name: "policy goes first", query: "evil.example.org", standard: policy.RefuseRefused, policies: []policy.Policy{nxdomain}, text: "blocked by netfence: deny rule evil.example.org"},
		{name: "block-all", query: "www.example.org", policies: []policy.Policy{*policy.BlockAll()}, text: "blocked by netfence: mode block-all"},
		{name: "block-all, dns disabled", query: "www.example.org", policies: []policy.Policy{{DNS: policy.DNS{Mode: policy.DNSDisabled}}}, text: "blocked by netfence: mode block-all"},
		{name: "block-all, proxy", query: "www.example.org", policies: []policy.Policy{{DNS: policy.DNS{Mode: policy.DNSProxy}}}, text: "blocked by netfence: mode block-all"},
		{name: "denylist", query: "evil.example", policies: []policy.Policy{denylist("evil.example")}, text: "blocked by netfence: deny rule evil.example"},
		{name: "enclosing", query: "www.example.org", policies: []policy.Policy{deny, allowlist("other.example")}, text: "blocked by netfence: no rule allows www.example.org"},
		{name: "inner", query: "www.example.org", policies: []policy.Policy{allowlist("other.example"), deny}, text: "blocked by netfence: no rule allows www.example.org"},
		{name: "enclosing a disabled one", query: "evil.example.org", policies: []policy.Policy{without, deny}, text: "blocked by netfence: deny rule evil.example.org"},
		{name: "escape", query: `a\.b.example.org`, policies: []policy.Policy{deny}, text: `blocked by netfence: a\.b.example.org. has characters that no rule can name`},
		{name: "escape in denylist", query: `\255.example`, policies: []policy.Policy{denylist("evil.example")}, text: `blocked by netfence: \255.example. has characters that no rule can name`},
		{name: "canary", query: "use-application-dns.net", policies: []policy.Policy{allowlist("*")}, text: "blocked by netfence: use-application-dns.net tells browsers to use this resolver"},
		{name: "below the canary", query: "a.Use-Application-dns.net", policies: []policy.Policy{denylist()}, text: "blocked by netfence: use-application-dns.net tells browsers to use this resolver"},
		{name: "canary where refusals are refused", query: "use-application-dns.net", policies: []policy.Policy{refusing}, text: "blocked by netfence: use-application-dns.net tells browsers to use this resolver"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := serve(t, Options{RefuseWith: tt.standard}, []*resolver{up}, tt.policies...)
			if tt.qtype == 0 {
				tt.qtype = dns.TypeA
			}
			if tt.rcode == 0 {
				tt.rcode = dns.RcodeNameError
			}
			m := w.ask(t, tt.query, tt.qtype)
			if m.Rcode != tt.rcode || len(m.Answer) != 0 {
				t.Errorf("answer: %v", m)
			}
			if code, text := explained(m); code != dns.ExtendedErrorCodeBlocked || text != tt.text {
				t.Errorf("EDE %d %q, want %q", code, text, tt.text)
			}
			if tt.rcode == dns.RcodeNameError {
				soa, ok := m.Ns[0].(*dns.SOA)
				if !ok || soa.Hdr.Ttl != 5 || soa.Minttl != 5 || !dns.IsSubDomain(soa.Hdr.Name, m.Question[0].Name) {
					t.Errorf("authority: %v", m.Ns)
				}
			}
			plain := questionFor(tt.query, tt.qtype)
			plain.Extra = nil
			if m := w.exchangeWith(t, "udp", plain); m.Rcode != tt.rcode || len(m.Extra) != 0 {
				t.Errorf("without EDNS: %v", m)
			}
			for _, e := range w.seen() {
				if e.Decision == nil || e.Decision.Allowed || e.Attachment == "" {
					t.Errorf("event: %+v", e)
				}
			}
			if taught := w.kernel.taught(); len(taught) != 0 {
				t.Errorf("taught: %+v", taught)
			}
		})
	}
	if asked := up.queries(); len(asked) != 0 {
		t.Errorf("upstream was asked: %v", asked)
	}
}

func TestChain(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	private := allowlist("b.example")
	private.DNS.Allow[0].Private = true
	w := serve(t, Options{}, []*resolver{up}, without, allowlist("*.example"), private)
	if m := w.ask(t, "b.example", dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("answer: %v", m)
	}
	taught := w.kernel.taught()
	if len(taught) != 2 || taught[0].Member.ID != "b" || taught[0].Grant.Private || taught[1].Member.ID != "c" || !taught[1].Grant.Private {
		t.Errorf("taught: %+v", taught)
	}
	w.ask(t, "c.example", dns.TypeA)
	for id, want := range map[string][2]uint64{"a": {0, 0}, "b": {1, 1}, "c": {1, 1}} {
		if c := w.Counts(id); c.Allowed != want[0] || c.Blocked != want[1] {
			t.Errorf("counts of %s: %+v, want %v", id, c, want)
		}
	}
	if got := w.seen()[3].Decision.Reason; got != "an enclosing attachment: no rule allows c.example" {
		t.Errorf("reason for the client's own: %s", got)
	}
}

func TestNobody(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{}, []*resolver{up})
	m := w.ask(t, "a.example", dns.TypeA)
	if _, text := explained(m); m.Rcode != dns.RcodeServerFailure || text != "no policy is in force for this workload" {
		t.Errorf("answer: %v", m)
	}
	if len(up.queries()) != 0 || len(w.seen()) != 0 {
		t.Errorf("asked %v, events %v", up.queries(), w.seen())
	}
}

// TestDisabled holds that without DNS filtering answers pass as they are, and
// teach nothing.
func TestDisabled(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 10.0.0.1", "unrelated.example. 60 IN A 192.0.2.1"))
	w := serve(t, Options{}, []*resolver{up}, without, without)
	for _, name := range []string{"a.example", "use-application-dns.net", `a\.b.example`} {
		if m := w.ask(t, name, dns.TypeA); len(m.Answer) != 2 || m.Answer[0].Header().Name != dns.Fqdn(name) {
			t.Errorf("answer: %v", m)
		}
	}
	if taught := w.kernel.taught(); len(taught) != 0 {
		t.Errorf("taught: %+v", taught)
	}
	if allowed := w.Counts("a").Allowed; allowed != 3 {
		t.Errorf("%d allowed", allowed)
	}
}

func TestAnsweredHere(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{}, []*resolver{up}, denylist("evil.example"))
	if m := w.ask(t, "_dns.resolver.arpa", dns.TypeSVCB); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 || len(m.Ns) != 1 {
		t.Errorf("discovery of designated resolvers: %v", m)
	}
	m := w.ask(t, "a.example", dns.TypeANY)
	if hinfo, ok := m.Answer[0].(*dns.HINFO); !ok || hinfo.Cpu != "RFC8482" || len(m.Answer) != 1 {
		t.Errorf("ANY: %v", m)
	}
	if asked := up.queries(); len(asked) != 0 {
		t.Errorf("upstream was asked: %v", asked)
	}
}

// remote is a control plane.
type remote func(ctx context.Context, id, name, qtype string) (RemoteAnswer, error)

func (r remote) QueryDNS(ctx context.Context, id, name, qtype string) (RemoteAnswer, error) {
	return r(ctx, id, name, qtype)
}

func answers(a RemoteAnswer) remote {
	return func(context.Context, string, string, string) (RemoteAnswer, error) { return a, nil }
}

func TestProxy(t *testing.T) {
	both := addrs("192.0.2.9", "2001:db8::9")
	for _, tt := range []struct {
		name    string
		remote  Remote
		qtype   uint16
		rcode   int
		answer  []string
		learned []netip.Addr
		text    string
		asks    int // of upstream
	}{
		{name: "none", rcode: dns.RcodeServerFailure, text: "dns mode proxy without a control plane to ask"},
		{name: "error", rcode: dns.RcodeServerFailure, text: "the control plane did not decide", remote: remote(func(context.Context, string, string, string) (RemoteAnswer, error) {
			return RemoteAnswer{Allow: true, Learn: true, Addrs: both}, errors.New("gone")
		})},
		{name: "hangs", rcode: dns.RcodeServerFailure, text: "the control plane did not decide", remote: remote(func(ctx context.Context, _, _, _ string) (RemoteAnswer, error) {
			<-ctx.Done()
			return RemoteAnswer{}, ctx.Err()
		})},
		{name: "denies", rcode: dns.RcodeNameError, text: "blocked by netfence: the control plane denies a.example", remote: answers(RemoteAnswer{Addrs: both, Learn: true})},
		{name: "upstream's", remote: answers(RemoteAnswer{Allow: true}), answer: []string{"192.0.2.1"}, asks: 1},
		{name: "upstream's, learned", remote: answers(RemoteAnswer{Allow: true, Learn: true}), answer: []string{"192.0.2.1"}, learned: addrs("192.0.2.1"), asks: 1},
		{name: "its own", remote: answers(RemoteAnswer{Allow: true, Addrs: both, TTL: time.Minute}), answer: []string{"192.0.2.9"}},
		{name: "its own, learned", remote: answers(RemoteAnswer{Allow: true, Learn: true, Addrs: both, TTL: time.Minute}), answer: []string{"192.0.2.9"}, learned: addrs("192.0.2.9")},
		{name: "its own, v6", qtype: dns.TypeAAAA, remote: answers(RemoteAnswer{Allow: true, Learn: true, Addrs: both}), answer: []string{"2001:db8::9"}, learned: addrs("2001:db8::9")},
		{name: "its own, no address asked for", qtype: dns.TypeTXT, remote: answers(RemoteAnswer{Allow: true, Learn: true, Addrs: both}), answer: []string{}},
		{name: "its own, private", remote: answers(RemoteAnswer{Allow: true, Learn: true, Addrs: addrs("10.0.0.9")}), answer: []string{"10.0.0.9"}, learned: addrs("10.0.0.9")},
		{name: "its own, mapped", remote: answers(RemoteAnswer{Allow: true, Learn: true, Addrs: addrs("::ffff:192.0.2.9")}), answer: []string{"192.0.2.9"}, learned: addrs("192.0.2.9")},
		{name: "no address", rcode: dns.RcodeServerFailure, text: "the control plane gave an address that no answer can hold", remote: answers(RemoteAnswer{Allow: true, Addrs: []netip.Addr{{}}})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
			o := Options{Remote: tt.remote}
			if tt.name == "hangs" {
				o.Timeout = 300 * time.Millisecond
			}
			w := serve(t, o, []*resolver{up}, byProxy)
			if tt.qtype == 0 {
				tt.qtype = dns.TypeA
			}
			m := w.ask(t, "A.example", tt.qtype)
			if _, text := explained(m); m.Rcode != tt.rcode || text != tt.text {
				t.Errorf("answer: %v", m)
			}
			if tt.answer != nil && !slices.Equal(rdata(m.Answer), tt.answer) || tt.answer == nil && len(m.Answer) > 0 {
				t.Errorf("answer: %v, want %v", m, tt.answer)
			}
			var learned []netip.Addr
			for _, l := range w.kernel.taught() {
				learned = append(learned, l.Addrs...)
				if !l.Grant.Proxy || l.TTL < 30*time.Second {
					t.Errorf("lesson: %+v", l)
				}
			}
			if !slices.Equal(learned, tt.learned) {
				t.Errorf("learned %v, want %v", learned, tt.learned)
			}
			if n := len(up.queries()); n != tt.asks {
				t.Errorf("upstream asked %d times, want %d", n, tt.asks)
			}
		})
	}
}

func TestProxyAsked(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	r := remote(func(_ context.Context, id, name, qtype string) (RemoteAnswer, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, id+" "+name+" "+qtype)
		given := addrs("192.0.2.1", "192.0.2.2")
		if id == "c" {
			given = addrs("192.0.2.2", "192.0.2.3", "10.0.0.1")
		}
		return RemoteAnswer{Allow: true, Learn: id == "c", Addrs: given, TTL: time.Hour}, nil
	})
	w := serve(t, Options{Remote: r}, nil, byProxy, allowlist("a.example"), byProxy)
	if m := w.ask(t, "b.example", dns.TypeHTTPS); m.Rcode != dns.RcodeNameError {
		t.Errorf("answer: %v", m)
	}
	m := w.ask(t, "A.Example", dns.TypeA)
	mu.Lock()
	defer mu.Unlock()
	if got := rdata(m.Answer); !slices.Equal(got, []string{"192.0.2.2"}) {
		t.Errorf("two control planes: %v", m)
	}
	// And nothing about what a rule refuses.
	if want := []string{"a A.Example. A", "c A.Example. A"}; !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
	var ids []string
	for _, l := range w.kernel.taught() {
		ids = append(ids, l.Member.ID)
	}
	if !slices.Equal(ids, []string{"b", "c"}) {
		t.Errorf("learned for %v", ids)
	}
}
