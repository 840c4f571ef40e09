// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net/netip"
)

// Packets for Prog.Run, built by hand so that the odd ones can be odd.

const (
	protoHopByHop = 0
	protoICMP     = 1
	protoIPIP     = 4
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoGRE      = 47
	protoESP      = 50
	protoAH       = 51
	protoICMPv6   = 58
	protoDstOpts  = 60
	protoSCTP     = 132

	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherIPv6 = 0x86dd
	etherQinQ = 0x88a8
)

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func join(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// frame prepends MAC addresses and ethertypes, tags first.
func frame(payload []byte, types ...int) []byte {
	f := make([]byte, 12)
	for i, t := range types {
		f = append(f, be16(t)...)
		if i < len(types)-1 {
			f = append(f, 0, 7) // tag control: VLAN 7
		}
	}
	return append(f, payload...)
}

type ipv4 struct {
	src, dst string
	proto    byte
	ttl      byte
	frag     int // flags and offset, as in the header
	options  []byte
}

func (h ipv4) packet(payload []byte) []byte {
	size := 20 + len(h.options)
	b := make([]byte, size)
	b[0] = 4<<4 | byte(size/4)
	binary.BigEndian.PutUint16(b[2:], uint16(size+len(payload)))
	binary.BigEndian.PutUint16(b[6:], uint16(h.frag))
	b[8], b[9] = 64, h.proto
	if h.ttl != 0 {
		b[8] = h.ttl
	}
	src := h.src
	if src == "" {
		src = "10.0.0.2"
	}
	copy(b[12:], netip.MustParseAddr(src).AsSlice())
	copy(b[16:], netip.MustParseAddr(h.dst).AsSlice())
	copy(b[20:], h.options)
	return append(b, payload...)
}

type ipv6 struct {
	src, dst string
	proto    byte
	hops     byte
}

func (h ipv6) packet(payload []byte) []byte {
	b := make([]byte, 40)
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = h.proto, 64
	if h.hops != 0 {
		b[7] = h.hops
	}
	src := h.src
	if src == "" {
		src = "fd00::2"
	}
	copy(b[8:], netip.MustParseAddr(src).AsSlice())
	copy(b[24:], netip.MustParseAddr(h.dst).AsSlice())
	return append(b, payload...)
}

func udp(sport, dport int) []byte { return join(be16(sport), be16(dport), be16(8), be16(0)) }

const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

func tcp(sport, dport int, flags byte) []byte {
	b := make([]byte, 20)
	copy(b, join(be16(sport), be16(dport)))
	b[12], b[13] = 5<<4, flags
	return b
}

func icmp(kind byte, id int) []byte { return join([]byte{kind, 0, 0, 0}, be16(id), be16(1)) }

func udp4(dst string, dport int) []byte {
	return frame(ipv4{dst: dst, proto: protoUDP}.packet(udp(4000, dport)), etherIPv4)
}

func tcp4(dst string, dport int) []byte {
	return frame(ipv4{dst: dst, proto: protoTCP}.packet(tcp(4000, dport, flagSYN)), etherIPv4)
}

func udp6(dst string, dport int) []byte {
	return frame(ipv6{dst: dst, proto: protoUDP}.packet(udp(4000, dport)), etherIPv6)
}
