// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/netfence/netfence/policy"
)

var (
	ownMAC   = [6]byte{2, 0, 0, 0, 0, 7}
	otherMAC = [6]byte{2, 0, 0, 0, 0, 8}
)

func sentBy(mac [6]byte, packet []byte) []byte {
	packet = slices.Clone(packet)
	copy(packet[6:], mac[:])
	return packet
}

// arpOf is a request or reply that claims sender has the address.
func arpOf(sender [6]byte, addr string) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	b = append(b, sender[:]...)
	b = append(b, netip.MustParseAddr(addr).AsSlice()...)
	return frame(append(b, make([]byte, 10)...), etherARP)
}

// neighbour is an advertisement (136) of target by mac, or a solicitation (135).
func neighbour(kind byte, src, target string, option byte, mac [6]byte) []byte {
	body := join([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(target).AsSlice(), []byte{option, 1}, mac[:])
	return frame(ipv6{src: src, dst: "ff02::1", proto: protoICMPv6, hops: 255}.packet(body), etherIPv6)
}

func TestSource(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	source := func(list ...string) []policy.Source {
		var sources []policy.Source
		for _, s := range list {
			parsed, err := policy.ParseSource(s)
			if err != nil {
				t.Fatal(err)
			}
			sources = append(sources, parsed)
		}
		return sources
	}
	from := func(src string) []byte {
		if netip.MustParseAddr(src).Is4() {
			return frame(ipv4{src: src, dst: "192.0.2.1", proto: protoUDP}.packet(udp(4000, 9)), etherIPv4)
		}
		return frame(ipv6{src: src, dst: "2001:db8::1", proto: protoUDP}.packet(udp(4000, 9)), etherIPv6)
	}
	dhcp := frame(ipv4{src: "0.0.0.0", dst: "255.255.255.255", proto: protoUDP}.packet(udp(68, 67)), etherIPv4)
	both := source("10.0.0.2", "fd00::/64", "02:00:00:00:00:07")
	addresses, mac := source("10.0.0.0/30", "fd00::2"), source("02:00:00:00:00:07")
	for _, tt := range []struct {
		name    string
		sources []policy.Source
		packet  []byte
		passes  bool
	}{
		{"own", both, sentBy(ownMAC, from("10.0.0.2")), true},
		{"own v6", both, sentBy(ownMAC, from("fd00::77")), true},
		{"spoofed", both, sentBy(ownMAC, from("10.0.0.3")), false},
		{"spoofed v6", both, sentBy(ownMAC, from("fd01::77")), false},
		{"of another MAC", both, sentBy(otherMAC, from("10.0.0.2")), false},
		{"only addresses: any MAC", addresses, sentBy(otherMAC, from("10.0.0.3")), true},
		{"only addresses: spoofed", addresses, sentBy(ownMAC, from("10.0.0.4")), false},
		{"only a MAC: any address", mac, sentBy(ownMAC, from("10.0.0.4")), true},
		{"only a MAC: another", mac, sentBy(otherMAC, from("10.0.0.4")), false},
		{"link-local needs a source too", both, sentBy(ownMAC, from("fe80::7")), false},
		{"no address yet", both, sentBy(ownMAC, dhcp), true},
		{"no address, for something else", both, sentBy(ownMAC, from("0.0.0.0")), false},

		{"arp", both, sentBy(ownMAC, arpOf(ownMAC, "10.0.0.2")), true},
		{"arp probe", both, sentBy(ownMAC, arpOf(ownMAC, "0.0.0.0")), true},
		{"arp claims an address", both, sentBy(ownMAC, arpOf(ownMAC, "10.0.0.1")), false},
		{"arp claims for another MAC", both, sentBy(ownMAC, arpOf(otherMAC, "10.0.0.2")), false},
		{"arp from another MAC", both, sentBy(otherMAC, arpOf(ownMAC, "10.0.0.2")), false},
		{"arp of something else", both, sentBy(ownMAC, frame(make([]byte, 28), etherARP)), false},

		{"advertisement", both, sentBy(ownMAC, neighbour(136, "fe80::7", "fd00::5", 2, ownMAC)), true},
		{"advertisement of a link-local address", both, sentBy(ownMAC, neighbour(136, "fe80::7", "fe80::7", 2, ownMAC)), true},
		{"advertisement claims an address", both, sentBy(ownMAC, neighbour(136, "fe80::7", "fd01::5", 2, ownMAC)), false},
		{"advertisement for another MAC", both, sentBy(ownMAC, neighbour(136, "fe80::7", "fd00::5", 2, otherMAC)), false},
		{"solicitation", both, sentBy(ownMAC, neighbour(135, "fe80::7", "fd00::5", 1, ownMAC)), true},
		{"solicitation of anybody", both, sentBy(ownMAC, neighbour(135, "fe80::7", "fd02::5", 1, ownMAC)), true},
		{"solicitation for another MAC", both, sentBy(ownMAC, neighbour(135, "fe80::7", "fd00::5", 1, otherMAC)), false},
		{"duplicate address detection", both, sentBy(ownMAC, neighbour(135, "::", "fd00::5", 14, otherMAC)), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			replace(t, d, id, &policy.Policy{
				Mode: policy.ModeAllowlist, Source: tt.sources, Replies: policy.RepliesDeny,
				Allow: []policy.Rule{rule("192.0.2.0/24"), rule("2001:db8::/32")},
			})
			want := uint32(dropped)
			if tt.passes {
				want = passed
			}
			before, err := d.Counters(id)
			if err != nil {
				t.Fatal(err)
			}
			verdict(t, d, tg, "first", tt.packet, want)
			verdict(t, d, tg, "second", tt.packet, want)
			after, err := d.Counters(id)
			if err != nil || (after.Drops["source"] == before.Drops["source"]) != tt.passes {
				t.Errorf("counted %v, before %v, %v", after.Drops, before.Drops, err)
			}
		})
	}
}

// Sources are part of what a slot holds: other ones are another slot.
func TestSourcesAreReplacedWithTheRules(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	p := func(prefix string) *policy.Policy {
		return &policy.Policy{
			Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("192.0.2.0/24")},
			Source: []policy.Source{{Prefix: netip.MustParsePrefix(prefix)}},
		}
	}
	replace(t, d, id, p("10.0.0.2/32"))
	verdict(t, d, tg, "own", udp4("192.0.2.1", 9), passed)
	replace(t, d, id, p("10.0.0.3/32"))
	verdict(t, d, tg, "no more", udp4("192.0.2.1", 9), dropped)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("192.0.2.0/24")}})
	verdict(t, d, tg, "any", udp4("192.0.2.1", 9), passed)
}
