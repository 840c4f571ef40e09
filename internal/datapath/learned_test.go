// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func domain(name string, ports ...policy.Ports) policy.DomainRule {
	return policy.DomainRule{Domain: name, Ports: ports}
}

// domains is an allowlist of names, and of nothing else.
func domains(rules ...policy.DomainRule) *policy.Policy {
	return &policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSAllowlist, Allow: rules}}
}

func member(t testing.TB, d *Datapath, id string) Member {
	t.Helper()
	index, ok := d.Index(id)
	chain := d.Chain(index)
	if !ok || len(chain) != 1 {
		t.Fatalf("chain of %s: %v", id, chain)
	}
	return chain[0]
}

// lesson is what an answer for name with these addresses teaches under the policy in force.
func lesson(t testing.TB, d *Datapath, id, name string, ttl time.Duration, addrs ...string) Lesson {
	t.Helper()
	m := member(t, d, id)
	g, ok := m.Names.Grant(m.Names.Decide(name))
	if !ok {
		t.Fatalf("%s is not granted", name)
	}
	l := Lesson{Member: m, Name: name, Grant: g, TTL: ttl}
	for _, a := range addrs {
		l.Addrs = append(l.Addrs, netip.MustParseAddr(a))
	}
	return l
}

func learn(t testing.TB, d *Datapath, id, name string, ttl time.Duration, addrs ...string) {
	t.Helper()
	if err := d.Learn([]Lesson{lesson(t, d, id, name, ttl, addrs...)}, true); err != nil {
		t.Fatal(err)
	}
}

func forgetPasses(t testing.TB, d *Datapath) {
	t.Helper()
	none := make([]bpfPass, ebpf.MustPossibleCPU())
	for place := range uint32(bpfLimitMAX_PASSES) {
		if err := d.bpf.NfPasses.Put(place, none); err != nil {
			t.Fatal(err)
		}
	}
}

// expireGrants puts the deadline of every grant into the past, in the kernel and in the memory. Programs do
// not look at it for a second: they forget what they have found out.
func expireGrants(t testing.TB, d *Datapath) {
	t.Helper()
	forgetPasses(t, d)
	expired := make(map[bpfLearnedKey]bpfLearned)
	var key bpfLearnedKey
	var chunk bpfLearned
	it := d.bpf.NfLearned.Iterate()
	for it.Next(&key, &chunk) {
		for i := range chunk.Grants {
			chunk.Grants[i].Deadline = min(chunk.Grants[i].Deadline, 1)
		}
		expired[key] = chunk
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	for key, chunk := range expired {
		if err := d.bpf.NfLearned.Update(&key, &chunk, ebpf.UpdateExist); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range d.known {
		a.memory.mu.Lock()
		for _, gs := range a.memory.addrs {
			for i := range gs {
				gs[i].deadline = min(gs[i].deadline, 1)
			}
		}
		a.memory.due = min(a.memory.due, 1)
		a.memory.mu.Unlock()
	}
}

// lessonsOf counts what the kernel holds for an attachment.
func lessonsOf(t testing.TB, d *Datapath, incarnation uint32) (names, grants int) {
	t.Helper()
	var nk bpfNameKey
	var n bpfName
	for it := d.bpf.NfNames.Iterate(); it.Next(&nk, &n); {
		if nk.Incarnation == incarnation {
			names++
		}
	}
	var ak bpfLearnedKey
	var chunk bpfLearned
	for it := d.bpf.NfLearned.Iterate(); it.Next(&ak, &chunk); {
		if ak.Incarnation != incarnation {
			continue
		}
		for _, g := range chunk.Grants {
			if g.Deadline != 0 {
				grants++
			}
		}
	}
	return names, grants
}

func verdict(t testing.TB, d *Datapath, tg target.Target, what string, packet []byte, want uint32) {
	t.Helper()
	if got := run(t, d.bpf.NfOutL2, tg, packet); got != want {
		t.Errorf("%s: verdict %#x, want %#x", what, got, want)
	}
}

func TestLearnedAddresses(t *testing.T) {
	d := open(t, pinDir(t))
	tg, other := vethTarget(t, "v0"), vethTarget(t, "v1")
	id, neighbour := attach(t, d, tg), attach(t, d, other)
	p := domains(domain("any.example"), domain("web.example", ports(443, 443, policy.TCP), ports(8000, 8100, 0)))
	p.Allow = []policy.Rule{rule("64:ff9b::/96"), rule("192.0.2.0/24"), rule("198.51.100.99/32", ports(853, 853, 0))}
	p.Deny = []policy.Rule{rule("203.0.113.128/25"), rule("203.0.113.1/32", ports(25, 25, policy.TCP)), rule("192.0.2.66/32")}
	replace(t, d, id, p)
	replace(t, d, neighbour, p)
	learn(t, d, id, "any.example", time.Minute, "203.0.113.1", "203.0.113.129", "2001:db8::1", "::ffff:203.0.113.2", "2002:c000:242::1", "127.0.0.1", "2002:cb00:7101::1")
	learn(t, d, id, "web.example", time.Minute, "198.51.100.7")

	v4 := func(h ipv4, payload []byte) []byte { return frame(h.packet(payload), etherIPv4) }
	const ok = ""
	for _, tt := range []struct {
		name   string
		packet []byte
		reason string
	}{
		{"learned", udp4("203.0.113.1", 9), ok},
		{"learned, v6", udp6("2001:db8::1", 9), ok},
		{"learned, v4-mapped in the answer", tcp4("203.0.113.2", 9), ok},
		{"beside it", udp4("203.0.113.3", 9), "no-rule"},
		{"icmp", v4(ipv4{dst: "203.0.113.1", proto: protoICMP}, icmp(8, 1)), ok},
		{"esp", v4(ipv4{dst: "203.0.113.1", proto: protoESP}, make([]byte, 16)), ok},
		{"later fragment", v4(ipv4{dst: "203.0.113.1", proto: protoUDP, frag: 3}, udp(1, 2)), ok},
		{"denied by a rule", udp4("203.0.113.129", 9), "deny-rule"},
		{"denied by a rule for that port", tcp4("203.0.113.1", 25), "deny-rule"},
		{"port", tcp4("198.51.100.7", 443), ok},
		{"port, wrong protocol", udp4("198.51.100.7", 443), "no-rule"},
		{"range, udp", udp4("198.51.100.7", 8050), ok},
		{"range, tcp", tcp4("198.51.100.7", 8100), ok},
		{"past the range", tcp4("198.51.100.7", 8101), "no-rule"},
		{"portless where only ports are granted", v4(ipv4{dst: "198.51.100.7", proto: protoICMP}, icmp(8, 1)), "no-rule"},
		{"fragment where only ports are granted", v4(ipv4{dst: "198.51.100.7", proto: protoTCP, frag: 3}, tcp(1, 443, flagACK)), "no-rule"},
		{"loopback", udp4("127.0.0.1", 9), "loopback"},

		{"nat64 by a rule, inside learned", udp6("64:ff9b::203.0.113.1", 9), ok},
		{"nat64 by a rule, inside unknown", udp6("64:ff9b::203.0.113.3", 9), "no-rule"},
		{"nat64 by a rule, inside learned and denied", udp6("64:ff9b::203.0.113.129", 9), "deny-rule"},
		{"6to4 learned, inside denied", udp6("2002:c000:242::1", 9), "deny-rule"},
		{"6to4 learned, inside learned", udp6("2002:cb00:7101::1", 9), ok},
		{"6to4 unknown, inside learned", udp6("2002:cb00:7101::2", 9), "no-rule"},
		{"6to4 unknown, inside denied", udp6("2002:c000:242::2", 9), "deny-rule"},

		{"dns over tls, learned", tcp4("203.0.113.1", 853), "name-protocol"},
		{"dns over quic, a rule for every port", udp4("192.0.2.1", 853), "name-protocol"},
		{"dns over tls, a rule for the port", tcp4("198.51.100.99", 853), ok},
		{"dns over tls, denied", tcp4("192.0.2.66", 853), "deny-rule"},
		{"multicast dns", udp4("224.0.0.251", 5353), "name-protocol"},
		{"port of multicast dns, tcp", tcp4("203.0.113.1", 5353), ok},
		{"llmnr", udp4("224.0.0.252", 5355), "name-protocol"},
		{"llmnr, tcp", tcp4("203.0.113.1", 5355), "name-protocol"},
		{"netbios names", udp4("203.0.113.1", 137), "name-protocol"},
		{"port of netbios names, tcp", tcp4("203.0.113.1", 137), ok},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, err := d.Counters(id)
			if err != nil {
				t.Fatal(err)
			}
			want := uint32(passed)
			if tt.reason != ok {
				want = dropped
			}
			verdict(t, d, tg, "its own", tt.packet, want)
			after, err := d.Counters(id)
			if err != nil {
				t.Fatal(err)
			}
			if tt.reason != ok && after.Drops[tt.reason] != before.Drops[tt.reason]+1 {
				t.Errorf("counted %v, before %v, want one more %s", after.Drops, before.Drops, tt.reason)
			}
		})
	}
	verdict(t, d, other, "learned by another attachment", udp4("203.0.113.1", 9), dropped)

	for name, edit := range map[string]func(*policy.Policy){
		"block-all":    func(p *policy.Policy) { p.Mode = policy.ModeBlockAll },
		"dns disabled": func(p *policy.Policy) { p.DNS.Mode = policy.DNSDisabled },
	} {
		replace(t, d, id, p)
		learn(t, d, id, "any.example", time.Minute, "203.0.113.1")
		verdict(t, d, tg, "before "+name, udp4("203.0.113.1", 9), passed)
		closed := *p
		edit(&closed)
		replace(t, d, id, &closed)
		verdict(t, d, tg, name, udp4("203.0.113.1", 9), dropped)
		replace(t, d, id, p)
		verdict(t, d, tg, "after "+name, udp4("203.0.113.1", 9), dropped)
	}
}

func TestNameProtocolsPassWhileNamesAreNotFiltered(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	for _, tt := range []struct {
		mode policy.Mode
		dns  policy.DNSMode
		want uint32
	}{
		{policy.ModeAllowlist, policy.DNSDisabled, passed},
		{policy.ModeDenylist, policy.DNSDisabled, passed},
		{policy.ModeDisabled, policy.DNSDisabled, passed},
		{policy.ModeDisabled, policy.DNSAllowlist, passed},
		{policy.ModeAllowlist, policy.DNSDenylist, dropped},
		{policy.ModeDenylist, policy.DNSDenylist, dropped},
		{policy.ModeDenylist, policy.DNSProxy, dropped},
	} {
		replace(t, d, id, &policy.Policy{Mode: tt.mode, Allow: []policy.Rule{rule("192.0.2.0/24")}, DNS: policy.DNS{Mode: tt.dns}})
		verdict(t, d, tg, tt.mode.String()+", dns "+tt.dns.String(), tcp4("192.0.2.1", 853), tt.want)
	}
}

func TestLearnedAddressesExpire(t *testing.T) {
	d := openWith(t, Config{Dir: pinDir(t), Grace: time.Millisecond})
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, domains(domain("a.example")))
	learn(t, d, id, "a.example", 200*time.Millisecond, "203.0.113.1")
	learn(t, d, id, "a.example", time.Minute, "203.0.113.2")
	learn(t, d, id, "a.example", time.Millisecond, "203.0.113.2") // does not shorten
	learn(t, d, id, "a.example", time.Millisecond, "203.0.113.3")
	learn(t, d, id, "a.example", time.Minute, "203.0.113.3") // extends
	verdict(t, d, tg, "live", udp4("203.0.113.2", 9), passed)
	syn := tcp4("203.0.113.1", 80)
	testenv.Eventually(t, "the address is closed", func() bool { return run(t, d.bpf.NfOutL2, tg, syn) == dropped })
	verdict(t, d, tg, "a shorter answer came", udp4("203.0.113.2", 9), passed)
	verdict(t, d, tg, "a longer answer came", udp4("203.0.113.3", 9), passed)
	list := d.Learned(id)
	if len(list) != 2 || list[0].Addr != netip.MustParseAddr("203.0.113.2") || list[0].Remaining <= 0 || list[0].Remaining > time.Minute+time.Millisecond {
		t.Errorf("learned: %+v", list)
	}
	if got := d.namesOf(identity(d.known[id]), netip.MustParseAddr("203.0.113.1")); !slices.Equal(got, []string{"a.example"}) {
		t.Errorf("names of what is over: %v", got)
	}
}

func TestLearnedListsNamesAndPorts(t *testing.T) {
	d := open(t, pinDir(t))
	id := attach(t, d, vethTarget(t, "v0"))
	p := domains(domain("b.example", ports(443, 443, policy.TCP), ports(53, 60, 0), ports(1, 1, policy.UDP)), domain("*.example"), domain("example"))
	replace(t, d, id, p)
	if got := d.Learned(id); got != nil {
		t.Errorf("learned nothing: %v", got)
	}
	learn(t, d, id, "a.example", time.Minute, "203.0.113.1")
	learn(t, d, id, "b.example", time.Minute, "203.0.113.1")
	learn(t, d, id, "c.example", time.Hour, "203.0.113.1")
	list := d.Learned(id)
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	slices.SortFunc(list, func(a, b Learned) int { return len(a.Ports) - len(b.Ports) })
	if every := list[0]; !slices.Equal(every.Names, []string{"c.example", "a.example"}) || every.Ports != nil || every.Remaining < time.Hour {
		t.Errorf("every port: %+v", every)
	}
	some := list[1]
	if want := []policy.Ports{ports(1, 1, policy.UDP), ports(53, 60, 0), ports(443, 443, policy.TCP)}; !slices.Equal(some.Names, []string{"b.example"}) || !slices.Equal(some.Ports, want) {
		t.Errorf("some ports: %+v, want %v", some, want)
	}
	if got := d.namesOf(identity(d.known[id]), netip.MustParseAddr("::ffff:203.0.113.1")); !slices.Equal(got, []string{"c.example", "b.example", "a.example"}) {
		t.Errorf("names: %v", got)
	}
	if got := d.namesOf(identity(d.known[id])+1<<32, netip.MustParseAddr("203.0.113.1")); got != nil {
		t.Errorf("names for another life of the index: %v", got)
	}
}
