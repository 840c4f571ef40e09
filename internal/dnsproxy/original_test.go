// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

// TestOriginalOfCgroups holds that a cgroup's server is found by where its query came from and to, that one on a lo
// which the daemon shares takes a rule, and that one on another lo is never asked.
func TestOriginalOfCgroups(t *testing.T) {
	const (
		outside, outside6, own, own6, stub = "198.51.100.9:53", "[2001:db8::9]:53", "192.0.2.1:53", "[2001:db8:2::1]:53", "127.0.0.53:53"

		unknown = "which is not known (give the zone's servers)"
		denied  = "which its rules do not allow"
		other   = "which only its own network namespace reaches (give the zone's servers)"
		asked   = ""
	)
	forwards := func(p policy.Policy, change ...func(*policy.Policy)) policy.Policy {
		p.DNS.Forward = []policy.ZoneForward{{Zone: "corp.example", Original: true}}
		for _, c := range change {
			c(&p)
		}
		return p
	}
	rule := func(prefixes ...string) func(*policy.Policy) {
		return func(p *policy.Policy) {
			for _, prefix := range prefixes {
				p.Allow = append(p.Allow, policy.Rule{Prefix: netip.MustParsePrefix(prefix)})
			}
		}
	}
	deny := func(prefix string) func(*policy.Policy) {
		return func(p *policy.Policy) { p.Deny = append(p.Deny, policy.Rule{Prefix: netip.MustParsePrefix(prefix)}) }
	}
	loopback := func(m policy.LoopbackMode) func(*policy.Policy) { return func(p *policy.Policy) { p.Loopback = m } }
	audit := func(p *policy.Policy) { p.Audit = true }
	everything := rule("0.0.0.0/0", "::/0")
	openly := policy.Policy{Mode: policy.ModeDenylist, DNS: policy.DNS{Mode: policy.DNSDenylist}}
	unfiltered := policy.Policy{Mode: policy.ModeDisabled, DNS: policy.DNS{Mode: policy.DNSAllowlist, Allow: rules("*")}}
	names := allowlist("*")
	for _, tt := range []struct {
		name     string
		origin   Origin
		server   string // that the kernel knows of; empty: of none
		policies []policy.Policy
		want     string
	}{
		{"a rule", Cgroup, outside, []policy.Policy{forwards(names, rule("198.51.100.9/32"))}, asked},
		{"a rule, IPv6", Cgroup, outside6, []policy.Policy{forwards(names, rule("2001:db8::/64"))}, asked},
		{"no rule", Cgroup, outside, []policy.Policy{forwards(names)}, denied},
		{"not known", Cgroup, "", []policy.Policy{forwards(names, everything)}, unknown},
		{"its DNS address", Cgroup, "127.128.0.7:53", []policy.Policy{forwards(names, everything)}, unknown},
		{"any address", Cgroup, "0.0.0.0:53", []policy.Policy{forwards(names, everything)}, unknown},
		{"any address, IPv6", Cgroup, "[::]:53", []policy.Policy{forwards(names, everything)}, unknown},
		{"a group", Cgroup, "224.0.0.251:53", []policy.Policy{forwards(names, everything)}, unknown},
		{"of a link", Cgroup, "[fe80::1]:53", []policy.Policy{forwards(names, everything)}, unknown},
		{"everybody", Cgroup, "255.255.255.255:53", []policy.Policy{forwards(names, everything)}, unknown},
		{"the mode", Cgroup, outside, []policy.Policy{forwards(openly)}, asked},
		{"around it a rule", Cgroup, outside, []policy.Policy{forwards(names, everything), forwards(names, everything)}, asked},
		{"around it no rule", Cgroup, outside, []policy.Policy{forwards(names, everything), names}, denied},

		{"lo, a rule", Cgroup, stub, []policy.Policy{forwards(names, rule("127.0.0.53/32"))}, asked},
		{"lo, IPv6, a rule", Cgroup, "[::1]:53", []policy.Policy{forwards(names, rule("::1/128"))}, asked},
		{"lo, no rule", Cgroup, stub, []policy.Policy{forwards(names)}, denied},
		{"lo, loopback allow", Cgroup, stub, []policy.Policy{forwards(names, loopback(policy.LoopbackAllow))}, denied},
		{"lo, loopback allow and a rule", Cgroup, stub, []policy.Policy{forwards(names, loopback(policy.LoopbackAllow), everything)}, asked},
		{"lo, loopback deny and a rule", Cgroup, stub, []policy.Policy{forwards(names, loopback(policy.LoopbackDeny), everything)}, denied},
		{"lo, a deny rule", Cgroup, stub, []policy.Policy{forwards(names, everything, deny("127.0.0.0/8"))}, denied},
		{"lo, the mode", Cgroup, stub, []policy.Policy{forwards(openly)}, denied},
		{"lo, the mode and a rule", Cgroup, stub, []policy.Policy{forwards(openly, everything)}, asked},
		{"lo, mode disabled", Cgroup, stub, []policy.Policy{forwards(unfiltered)}, asked},
		{"lo, audit", Cgroup, stub, []policy.Policy{forwards(names, audit, loopback(policy.LoopbackDeny))}, asked},
		{"lo, around it loopback deny", Cgroup, stub, []policy.Policy{forwards(names, everything), forwards(names, everything, loopback(policy.LoopbackDeny))}, denied},
		{"the host's own, a rule", Cgroup, own, []policy.Policy{forwards(names, rule("192.0.2.1/32"))}, asked},
		{"the host's own, the mode", Cgroup, own, []policy.Policy{forwards(openly)}, denied},
		{"the host's own, IPv6, the mode", Cgroup, own6, []policy.Policy{forwards(openly)}, denied},

		{"elsewhere, a rule", OtherNetns, outside, []policy.Policy{forwards(names, rule("198.51.100.9/32"))}, asked},
		{"elsewhere, no rule", OtherNetns, outside, []policy.Policy{forwards(names)}, denied},
		{"elsewhere, the host", OtherNetns, own, []policy.Policy{forwards(openly)}, asked},
		{"elsewhere, its lo", OtherNetns, "127.0.0.11:53", []policy.Policy{forwards(names, everything)}, other},
		{"elsewhere, its lo, IPv6", OtherNetns, "[::1]:53", []policy.Policy{forwards(names, everything)}, other},
		{"elsewhere, its lo, audit", OtherNetns, "127.0.0.11:53", []policy.Policy{forwards(names, audit)}, other},
		{"elsewhere, its lo, mode disabled", OtherNetns, "127.0.0.11:53", []policy.Policy{forwards(unfiltered)}, other},
		{"elsewhere, any address", OtherNetns, "0.0.0.0:53", []policy.Policy{forwards(names, everything)}, unknown},
		{"elsewhere, not known", OtherNetns, "", []policy.Policy{forwards(names, everything)}, unknown},
	} {
		for _, stream := range []bool{false, true} {
			var reached []netip.AddrPort
			reply := answering(t, dns.RcodeSuccess, "$ 60 A 203.0.113.1")
			w := bare(t, func(servers []netip.AddrPort, r *request, deadline time.Time, done func(*answer, *failure)) {
				reached = servers
				reply(servers, r, deadline, done)
			}, tt.policies...)
			w.host.read = func() ([]netip.Addr, error) { return addrs("192.0.2.1", "2001:db8:2::1"), nil }
			w.host.last.Store(nil)
			peer := Peer{
				Index: index, Origin: tt.origin, Netns: 3,
				Client: netip.MustParseAddrPort("127.0.0.1:40000"), Server: netip.MustParseAddrPort("127.136.0.7:253"),
			}
			var queries []datapath.CgroupQuery
			w.kernel.original = func(q datapath.CgroupQuery) (server netip.AddrPort, err error) {
				queries = append(queries, q)
				if tt.server != "" {
					server = netip.MustParseAddrPort(tt.server)
				}
				return server, nil
			}
			exchange := func(name string) string {
				t.Helper()
				m := new(dns.Msg)
				if err := m.Unpack(w.handle(t.Context(), packed(t, questionFor(name, dns.TypeA)), peer, stream)); err != nil {
					t.Fatal(err)
				}
				_, text := explained(m)
				return text
			}
			if got := exchange("a.example"); got != "" || len(queries) > 0 {
				t.Errorf("%s: another zone: %q, and %d questions to the kernel", tt.name, got, len(queries))
			}
			reached = nil
			got := exchange("a.corp.example")
			if !strings.HasSuffix(got, tt.want) && !strings.Contains(got, tt.want+" (allow ") {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
			if (got == "") != (tt.want == asked) || (tt.want == asked) != (len(reached) == 1) || len(reached) == 1 && reached[0].String() != tt.server {
				t.Errorf("%s: %q, asked %v", tt.name, got, reached)
			}
			netns := datapath.OwnNetns
			if tt.origin == OtherNetns {
				netns = peer.Netns
			}
			if len(queries) != 1 || queries[0].Member.Index != index || queries[0].Client != peer.Client || queries[0].Asked != peer.Server ||
				queries[0].TCP != stream || queries[0].Netns != netns {
				t.Errorf("%s: asked the kernel for %+v", tt.name, queries)
			}
		}
	}
	t.Run("the kernel does not say", func(t *testing.T) {
		w := bare(t, never(t), forwards(names, everything))
		w.kernel.original = func(datapath.CgroupQuery) (netip.AddrPort, error) { return netip.AddrPort{}, errors.New("no memory") }
		m := new(dns.Msg)
		if err := m.Unpack(w.handle(t.Context(), packed(t, questionFor("a.corp.example", dns.TypeA)), Peer{Index: index, Origin: Cgroup}, false)); err != nil {
			t.Fatal(err)
		}
		if _, text := explained(m); m.Rcode != dns.RcodeServerFailure || !strings.HasSuffix(text, "which is not known: no memory") {
			t.Errorf("%s", m)
		}
	})
}
