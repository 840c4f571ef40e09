// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func rule(prefix string, ports ...policy.Ports) policy.Rule {
	return policy.Rule{Prefix: netip.MustParsePrefix(prefix), Ports: ports}
}

func ports(first, last uint16, p policy.Protocol) policy.Ports {
	return policy.Ports{First: first, Last: last, Protocol: p}
}

// packetPolicy is the allowlist that TestPackets judges by.
func packetPolicy() *policy.Policy {
	return &policy.Policy{
		Mode: policy.ModeAllowlist,
		Allow: []policy.Rule{
			rule("192.0.2.0/24"),
			rule("198.51.100.7/32", ports(443, 443, policy.TCP), ports(8000, 8100, 0)),
			rule("203.0.113.0/24"), rule("203.0.113.64/32"),
			rule("2001:db8::/32"), rule("64:ff9b::/96"), rule("2002::/16"), rule("::/96"),
			rule("127.0.0.0/8"), rule("::1/128"),
		},
		Deny: []policy.Rule{
			rule("192.0.2.128/25"),
			rule("203.0.113.64/32"),
			rule("203.0.113.65/32", ports(25, 25, policy.TCP)),
		},
	}
}

func TestPackets(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, packetPolicy())

	v4 := func(h ipv4, payload []byte) []byte { return frame(h.packet(payload), etherIPv4) }
	v6 := func(h ipv6, payload []byte, trailer ...[]byte) []byte {
		return frame(join(h.packet(payload), join(trailer...)), etherIPv6)
	}
	const ok = ""
	for _, tt := range []struct {
		name   string
		packet []byte
		reason string // ok: it passes
	}{
		{"allowed", udp4("192.0.2.1", 9), ok},
		{"unlisted", udp4("10.9.9.9", 9), "no-rule"},
		{"metadata", tcp4("169.254.169.254", 80), "no-rule"},
		{"deny inside allow", udp4("192.0.2.129", 9), "deny-rule"},
		{"tie", udp4("203.0.113.64", 9), "deny-rule"},
		{"allowed port", tcp4("198.51.100.7", 443), ok},
		{"allowed port, wrong protocol", udp4("198.51.100.7", 443), "no-rule"},
		{"first of a range", udp4("198.51.100.7", 8000), ok},
		{"last of a range", tcp4("198.51.100.7", 8100), ok},
		{"past the range", tcp4("198.51.100.7", 8101), "no-rule"},
		{"deny port", tcp4("203.0.113.65", 25), "deny-rule"},
		{"deny port does not hide the covering allow", tcp4("203.0.113.65", 26), ok},
		{"icmp by destination", v4(ipv4{dst: "192.0.2.1", proto: protoICMP}, icmp(8, 1)), ok},
		{"icmp unlisted", v4(ipv4{dst: "10.9.9.9", proto: protoICMP}, icmp(8, 1)), "no-rule"},
		{"icmp where only ports are allowed", v4(ipv4{dst: "198.51.100.7", proto: protoICMP}, icmp(8, 1)), "no-rule"},
		{"esp by destination", v4(ipv4{dst: "192.0.2.1", proto: protoESP}, make([]byte, 16)), ok},
		{"esp unlisted", v4(ipv4{dst: "10.9.9.9", proto: protoESP}, make([]byte, 16)), "no-rule"},
		{"ipip, by the outer destination", v4(ipv4{dst: "192.0.2.1", proto: protoIPIP}, ipv4{dst: "10.9.9.9", proto: protoUDP}.packet(udp(1, 2))), ok},
		{"ipip unlisted, around an allowed one", v4(ipv4{dst: "10.9.9.9", proto: protoIPIP}, ipv4{dst: "192.0.2.1", proto: protoUDP}.packet(udp(1, 2))), "no-rule"},
		{"gre unlisted", v4(ipv4{dst: "10.9.9.9", proto: protoGRE}, make([]byte, 24)), "no-rule"},
		{"gre where only ports are allowed", v4(ipv4{dst: "198.51.100.7", proto: protoGRE}, make([]byte, 24)), "no-rule"},
		{"sctp unlisted", v4(ipv4{dst: "10.9.9.9", proto: protoSCTP}, join(be16(1), be16(443), make([]byte, 12))), "no-rule"},
		{"sctp to a port that is open for tcp", v4(ipv4{dst: "198.51.100.7", proto: protoSCTP}, join(be16(1), be16(443), make([]byte, 12))), "no-rule"},
		{"a protocol that nobody has", v4(ipv4{dst: "10.9.9.9", proto: 253}, nil), "no-rule"},
		{"multicast", udp4("224.0.0.251", 9), "no-rule"},
		{"igmp", v4(ipv4{dst: "224.0.0.22", proto: 2, options: []byte{148, 4, 0, 0}}, make([]byte, 8)), "no-rule"},
		{"broadcast", udp4("255.255.255.255", 9), "no-rule"},
		{"broadcast of a network", udp4("10.0.0.255", 9), "no-rule"},
		{"no destination at all", udp4("0.0.0.0", 9), "no-rule"},
		{"v6 allowed", udp6("2001:db8::1", 9), ok},
		{"v6 unlisted", udp6("2001:db9::1", 9), "no-rule"},
		{"nat64 of an allowed address", udp6("64:ff9b::192.0.2.1", 9), ok},
		{"nat64 of an unlisted address", udp6("64:ff9b::10.9.9.9", 9), "no-rule"},
		{"nat64 of a denied address", udp6("64:ff9b::192.0.2.129", 9), "deny-rule"},
		{"6to4 of an allowed address", udp6("2002:c000:201::1", 9), ok},
		{"6to4 of an unlisted address", udp6("2002:a09:909::1", 9), "no-rule"},
		{"v4-compatible of an unlisted address", udp6("::10.9.9.9", 9), "no-rule"},
		{"loopback off lo, though allowed", udp4("127.0.0.1", 9), "loopback"},
		{"v6 loopback off lo, though allowed", udp6("::1", 9), "loopback"},

		{"arp", frame(make([]byte, 28), etherARP), ok},
		{"not ip", frame(make([]byte, 28), 0x88cc), "not-ip"},
		{"802.3 length", frame(make([]byte, 28), 28), "not-ip"},
		{"one tag", frame(ipv4{dst: "192.0.2.1", proto: protoUDP}.packet(udp(1, 2)), etherVLAN, etherIPv4), ok},
		{"one tag, unlisted", frame(ipv4{dst: "10.9.9.9", proto: protoUDP}.packet(udp(1, 2)), etherVLAN, etherIPv4), "no-rule"},
		{"two tags, unlisted", frame(ipv4{dst: "10.9.9.9", proto: protoUDP}.packet(udp(1, 2)), etherQinQ, etherVLAN, etherIPv4), "no-rule"},
		{"three tags", frame(ipv4{dst: "192.0.2.1", proto: protoUDP}.packet(udp(1, 2)), etherQinQ, etherVLAN, etherVLAN, etherIPv4), "vlan-depth"},

		{"first fragment", v4(ipv4{dst: "192.0.2.1", proto: protoUDP, frag: 0x2000}, udp(1, 2)), ok},
		{"later fragment, rule without ports", v4(ipv4{dst: "192.0.2.1", proto: protoUDP, frag: 3}, udp(1, 443)), ok},
		{"later fragment, only ports allowed", v4(ipv4{dst: "198.51.100.7", proto: protoTCP, frag: 3}, tcp(1, 443, flagACK)), "no-rule"},
		{"loose source route", v4(ipv4{dst: "192.0.2.1", proto: protoUDP, options: []byte{131, 7, 4, 10, 9, 9, 9, 0}}, udp(1, 2)), "source-route"},
		{"strict source route after padding", v4(ipv4{dst: "192.0.2.1", proto: protoUDP, options: []byte{1, 1, 137, 7, 4, 10, 9, 9, 9, 0, 0, 0}}, udp(1, 2)), "source-route"},
		{"router alert", v4(ipv4{dst: "192.0.2.1", proto: protoUDP, options: []byte{148, 4, 0, 0}}, udp(1, 2)), ok},
		{"option of no length", v4(ipv4{dst: "192.0.2.1", proto: protoUDP, options: []byte{7, 0, 0, 0}}, udp(1, 2)), "malformed"},
		{"header length below 20", frame(append([]byte{0x44}, make([]byte, 40)...), etherIPv4), "malformed"},
		{"version 6 as ipv4", frame(ipv6{dst: "2001:db8::1", proto: protoUDP}.packet(udp(1, 2)), etherIPv4), "malformed"},

		{"hop-by-hop", v6(ipv6{dst: "2001:db8::1", proto: protoHopByHop}, join([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udp(1, 2))), ok},
		{"hop-by-hop, unlisted", v6(ipv6{dst: "2001:db9::1", proto: protoHopByHop}, join([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udp(1, 2))), "no-rule"},
		{"routing header, segments left", v6(ipv6{dst: "2001:db8::1", proto: protoRouting}, join([]byte{protoUDP, 0, 4, 1, 0, 0, 0, 0}, udp(1, 2))), "routing-header"},
		{"routing header, none left", v6(ipv6{dst: "2001:db8::1", proto: protoRouting}, join([]byte{protoUDP, 0, 4, 0, 0, 0, 0, 0}, udp(1, 2))), ok},
		{"routing header behind another, segments left", v6(ipv6{dst: "2001:db8::1", proto: protoDstOpts}, join([]byte{protoRouting, 0, 1, 4, 0, 0, 0, 0}, []byte{protoUDP, 0, 4, 1, 0, 0, 0, 0}, udp(1, 2))), "routing-header"},
		{"authentication header, unlisted", v6(ipv6{dst: "2001:db9::1", proto: protoAH}, join([]byte{protoUDP, 4}, make([]byte, 22), udp(1, 2))), "no-rule"},
		{"v6 first fragment", v6(ipv6{dst: "2001:db8::1", proto: protoFragment}, join([]byte{protoUDP, 0, 0, 1, 0, 0, 0, 1}, udp(1, 2))), ok},
		{"v6 fragment, unlisted", v6(ipv6{dst: "2001:db9::1", proto: protoFragment}, join([]byte{protoUDP, 0, 0, 9, 0, 0, 0, 1}, udp(1, 2))), "no-rule"},
		{"v6 later fragment", v6(ipv6{dst: "2001:db8::1", proto: protoFragment}, join([]byte{protoUDP, 0, 0, 8, 0, 0, 0, 1}, udp(1, 2))), ok},
		{"nine extension headers", v6(ipv6{dst: "2001:db8::1", proto: protoDstOpts}, join(slices.Repeat([]byte{protoDstOpts, 0, 1, 4, 0, 0, 0, 0}, 8), []byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udp(1, 2))), "extension-headers"},

		{"dhcp", v4(ipv4{src: "0.0.0.0", dst: "255.255.255.255", proto: protoUDP}, udp(68, 67)), ok},
		{"dhcp from another port", v4(ipv4{dst: "255.255.255.255", proto: protoUDP}, udp(4000, 67)), "no-rule"},
		{"dhcp unicast", udp4("10.0.0.1", 67), "no-rule"},
		{"dhcpv6", v6(ipv6{src: "fe80::2", dst: "ff02::1:2", proto: protoUDP}, udp(546, 547)), ok},
		{"neighbour solicitation", v6(ipv6{dst: "ff02::1:ff00:1", proto: protoICMPv6, hops: 255}, icmp(135, 0)), ok},
		{"neighbour solicitation from afar", v6(ipv6{dst: "ff02::1:ff00:1", proto: protoICMPv6, hops: 254}, icmp(135, 0)), "no-rule"},
		{"neighbour solicitation elsewhere", v6(ipv6{dst: "2001:db9::1", proto: protoICMPv6, hops: 255}, icmp(135, 0)), "no-rule"},
		{"neighbour solicitation with a payload", v6(ipv6{dst: "fe80::1", proto: protoICMPv6, hops: 255}, join(icmp(135, 0), make([]byte, 300))), "no-rule"},
		{"neighbour solicitation with more behind it", v6(ipv6{dst: "fe80::1", proto: protoICMPv6, hops: 255}, icmp(135, 0), make([]byte, 300)), "no-rule"},
		{"router advertisement", v6(ipv6{dst: "ff02::1", proto: protoICMPv6, hops: 255}, icmp(134, 0)), "no-rule"},
		{"mld report", v6(ipv6{dst: "ff02::16", proto: protoHopByHop, hops: 1}, join([]byte{protoICMPv6, 0, 5, 2, 0, 0, 1, 0}, icmp(143, 0))), ok},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, err := d.Counters(id)
			if err != nil {
				t.Fatal(err)
			}
			verdict := run(t, d.bpf.NfOutL2, tg, tt.packet)
			after, err := d.Counters(id)
			if err != nil {
				t.Fatal(err)
			}
			want := maps.Clone(before.Drops)
			if want == nil {
				want = make(map[string]uint64)
			}
			switch {
			case tt.reason == ok && verdict != passed:
				t.Errorf("dropped: %v, before %v", after.Drops, before.Drops)
			case tt.reason != ok && verdict != dropped:
				t.Errorf("passed, want %s", tt.reason)
			case tt.reason == ok:
				before.PacketsAllowed++
			default:
				before.PacketsDropped++
				want[tt.reason]++
			}
			if again := run(t, d.bpf.NfOutL2, tg, tt.packet); again != verdict {
				t.Errorf("verdict %#x the second time", again)
			}
			if after.PacketsAllowed != before.PacketsAllowed || after.PacketsDropped != before.PacketsDropped || !maps.Equal(after.Drops, want) {
				t.Errorf("counted %+v, want %d allowed, %d dropped, %v", after, before.PacketsAllowed, before.PacketsDropped, want)
			}
		})
	}
}

func TestTruncatedPacketsAreDropped(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, packetPolicy())

	// test_run itself refuses frames that end within the IP header.
	const upToIPv4, upToIPv6 = 14 + 20, 14 + 40
	for _, tt := range []struct {
		name  string
		whole []byte
		from  int
	}{
		{"udp4", udp4("192.0.2.1", 9), upToIPv4},
		{"tcp4", frame(ipv4{dst: "192.0.2.1", proto: protoTCP}.packet(tcp(1, 2, flagSYN)[:14]), etherIPv4), upToIPv4},
		{"icmp", frame(ipv4{dst: "192.0.2.1", proto: protoICMP}.packet(icmp(8, 1)), etherIPv4), upToIPv4},
		{"options", frame(ipv4{dst: "192.0.2.1", proto: protoESP, options: []byte{148, 4, 0, 0}}.packet(nil), etherIPv4), upToIPv4},
		{"udp6", udp6("2001:db8::1", 9), upToIPv6},
		{"extension", frame(ipv6{dst: "2001:db8::1", proto: protoHopByHop}.packet(join([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udp(1, 2))), etherIPv6), upToIPv6},
		{"tag", frame(ipv4{dst: "192.0.2.1", proto: protoUDP}.packet(udp(1, 2)), etherVLAN, etherIPv4), 15},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for n := tt.from; n <= len(tt.whole); n++ {
				verdict := runExact(t, d.bpf.NfOutL2, tg, tt.whole[:n])
				if want := map[bool]uint32{true: passed, false: dropped}[n == len(tt.whole)]; verdict != want {
					t.Errorf("%d of %d bytes: verdict %#x, want %#x", n, len(tt.whole), verdict, want)
				}
			}
		})
	}
}

func TestModes(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)

	allowed, denied, other, arp := udp4("192.0.2.1", 9), udp4("192.0.2.129", 9), udp4("10.9.9.9", 9), frame(make([]byte, 28), etherARP)
	odd := frame(make([]byte, 28), 0x88cc)
	for _, tt := range []struct {
		mode policy.Mode
		want map[string]uint32
	}{
		{policy.ModeBlockAll, map[string]uint32{"allowed": dropped, "denied": dropped, "other": dropped, "arp": dropped, "odd": dropped}},
		{policy.ModeAllowlist, map[string]uint32{"allowed": passed, "denied": dropped, "other": dropped, "arp": passed, "odd": dropped}},
		{policy.ModeDenylist, map[string]uint32{"allowed": passed, "denied": dropped, "other": passed, "arp": passed, "odd": dropped}},
		{policy.ModeDisabled, map[string]uint32{"allowed": passed, "denied": passed, "other": passed, "arp": passed, "odd": passed}},
	} {
		t.Run(tt.mode.String(), func(t *testing.T) {
			p := packetPolicy()
			p.Mode = tt.mode
			replace(t, d, id, p)
			for name, packet := range map[string][]byte{"allowed": allowed, "denied": denied, "other": other, "arp": arp, "odd": odd} {
				if got := run(t, d.bpf.NfOutL2, tg, packet); got != tt.want[name] {
					t.Errorf("%s: verdict %#x, want %#x", name, got, tt.want[name])
				}
			}
		})
	}
}

func TestUnknownInterfaceIsDropped(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	other := vethTarget(t, "v1")
	id := attach(t, d, tg)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeDisabled})

	if got := run(t, d.bpf.NfOutL2, tg, udp4("10.9.9.9", 9)); got != passed {
		t.Errorf("attached: verdict %#x, want pass", got)
	}
	if got := run(t, d.bpf.NfOutL2, other, udp4("10.9.9.9", 9)); got != dropped {
		t.Errorf("unattached: verdict %#x, want drop", got)
	}
}

// The same ifindex in another namespace is another interface. Before Linux 6.2 the programs cannot tell, and need not:
// what holds them then does not move with a device.
func TestInterfaceOfAnotherNamespaceIsDropped(t *testing.T) {
	testenv.Require(t, testenv.KernelContext)
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	replace(t, d, attach(t, d, tg), &policy.Policy{Mode: policy.ModeDisabled})
	if got := run(t, d.bpf.NfOutL2, tg, udp4("10.9.9.9", 9)); got != passed {
		t.Errorf("attached: verdict %#x, want pass", got)
	}
	testenv.NewNS(t).Do(func() {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0", Index: tg.Ifindex}, PeerName: "v0p"}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Errorf("add veth: %v", err)
			return
		}
		if got := run(t, d.bpf.NfOutL2, tg, udp4("10.9.9.9", 9)); got != dropped {
			t.Errorf("same ifindex, other namespace: verdict %#x, want drop", got)
		}
	})
}
