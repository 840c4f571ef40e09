// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

const redirected = 7 // TC_ACT_REDIRECT

// runOut is run, and returns what has become of the packet.
func runOut(t *testing.T, p *ebpf.Program, tg target.Target, packet []byte) (uint32, []byte) {
	t.Helper()
	options := &ebpf.RunOptions{Data: packet, DataOut: make([]byte, 256), Context: &skb{Ifindex: uint32(tg.Ifindex)}}
	verdict, err := p.Run(options)
	if err != nil {
		t.Fatal(err)
	}
	return verdict, options.DataOut
}

// dnsWorld is an attached interface, and a listener behind another one.
func dnsWorld(t *testing.T, p *policy.Policy) (d *Datapath, tg target.Target, id string) {
	t.Helper()
	d = open(t, pinDir(t))
	tg = vethTarget(t, "v0")
	id = attach(t, d, tg)
	replace(t, d, id, p)
	listener := vethTarget(t, "l0")
	if err := d.setDNS(bpfDnsSettingDNS_IFINDEX, uint64(listener.Ifindex)); err != nil {
		t.Fatal(err)
	}
	return d, tg, id
}

// checksummed gives a frame the checksums that its headers lack.
func checksummed(frame []byte) []byte {
	ip := frame[14:]
	transport, pseudo := ip[20:], ip[12:20]
	if ip[0]>>4 == 6 {
		transport, pseudo = ip[40:], ip[8:40]
	} else {
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], fold(sum(ip[:20])))
	}
	at := transport[6:8]
	if protocolOf(ip) == protoTCP {
		at = transport[16:18]
	}
	binary.BigEndian.PutUint16(at, 0)
	binary.BigEndian.PutUint16(at, fold(sum(pseudo)+sum(transport)+uint32(protocolOf(ip))+uint32(len(transport))))
	return frame
}

func protocolOf(ip []byte) byte {
	if ip[0]>>4 == 6 {
		return ip[6]
	}
	return ip[9]
}

func sum(b []byte) (s uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// addresses returns the source and the destination of a frame.
func addresses(frame []byte) (src, dst netip.Addr) {
	ip := frame[14:]
	if ip[0]>>4 == 6 {
		return netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	}
	return netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
}

// answerTo turns a query that was handed over around.
func answerTo(query []byte) []byte {
	b := append([]byte(nil), query...)
	ip := b[14:]
	addrs, size, ports := ip[12:20], 4, ip[20:24]
	if ip[0]>>4 == 6 {
		addrs, size, ports = ip[8:40], 16, ip[40:44]
	}
	for i := range size {
		addrs[i], addrs[size+i] = addrs[size+i], addrs[i]
	}
	ports[0], ports[1], ports[2], ports[3] = ports[2], ports[3], ports[0], ports[1]
	return checksummed(b)
}

func TestQueriesThereAndBack(t *testing.T) {
	d, tg, id := dnsWorld(t, packetPolicy())
	index, _ := d.Index(id)
	tcpQuery := func(f []byte) []byte { return checksummed(f) }
	for name, query := range map[string][]byte{
		"udp4":       checksummed(udp4("9.9.9.9", 53)),
		"tcp4":       tcpQuery(tcp4("9.9.9.9", 53)),
		"udp6":       checksummed(udp6("2620:fe::fe", 53)),
		"tcp6":       tcpQuery(frame(ipv6{dst: "2620:fe::fe", proto: protoTCP}.packet(tcp(4000, 53, flagSYN)), etherIPv6)),
		"nameserver": checksummed(udp4(nameserver4.String(), 53)),
		"allowed":    checksummed(udp4("192.0.2.1", 53)),
		"denied":     checksummed(udp4("192.0.2.129", 53)),
	} {
		t.Run(name, func(t *testing.T) {
			copy(query, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
			verdict, handed := runOut(t, d.bpf.NfOutL2, tg, query)
			if verdict != redirected {
				t.Fatalf("verdict %#x, want a redirect", verdict)
			}
			src, dst := addresses(handed)
			if _, want := addresses(query); dst != want {
				t.Errorf("goes to %s, want %s", dst, want)
			}
			if got, ok := InterfaceIndex(src); !ok || got != index {
				t.Errorf("comes from %s, of attachment %d, want %d", src, got, index)
			}
			if want := checksummed(append([]byte(nil), handed...)); string(want) != string(handed) {
				t.Errorf("checksums of %x, want %x", handed, want)
			}

			verdict, led := runOut(t, d.bpf.NfDnsReturn, tg, answerTo(handed))
			if verdict != redirected {
				t.Fatalf("answer: verdict %#x, want a redirect", verdict)
			}
			want := answerTo(query)
			copy(want, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
			if string(led) != string(want) {
				t.Errorf("answer %x, want %x", led, want)
			}
		})
	}
	t.Run("no checksum stays none", func(t *testing.T) {
		verdict, handed := runOut(t, d.bpf.NfOutL2, tg, udp4("9.9.9.9", 53))
		if got := binary.BigEndian.Uint16(handed[14+20+6:]); verdict != redirected || got != 0 {
			t.Errorf("verdict %#x, checksum %#x", verdict, got)
		}
	})
}

// What leaves by a device is addressed to the namespace's end of the veth.
func TestQueriesOnTheWayOut(t *testing.T) {
	d, tg, _ := dnsWorld(t, packetPolicy())
	for name, query := range map[string][]byte{"v4": checksummed(udp4("9.9.9.9", 53)), "v6": checksummed(udp6("2620:fe::fe", 53))} {
		_, want := runOut(t, d.bpf.NfOutL2, tg, query)
		copy(want, "\x02NFDNS\x00\x00\x00\x00\x00\x00")
		verdict, sent := runOut(t, d.bpf.NfHostL2, tg, query)
		if verdict != redirected || string(sent) != string(want) {
			t.Errorf("%s: verdict %#x, %x, want a redirect of %x", name, verdict, sent, want)
		}
	}
}

func TestWhatIsNoAnswer(t *testing.T) {
	d, tg, id := dnsWorld(t, packetPolicy())
	_, handed := runOut(t, d.bpf.NfOutL2, tg, checksummed(udp4("9.9.9.9", 53)))
	answer := answerTo(handed)
	client, _ := addresses(handed)
	if verdict := runExact(t, d.bpf.NfDnsReturn, tg, answer); verdict != redirected {
		t.Fatalf("answer: verdict %#x", verdict)
	}
	changed := func(at int, value byte) []byte {
		b := append([]byte(nil), answer...)
		b[at] = value
		return checksummed(b)
	}
	for name, packet := range map[string][]byte{
		"another port":        changed(14+20+1, 54),
		"another client port": changed(14+20+2, 99),
		"another server":      changed(14+15, 8),
		"another attachment":  changed(14+19, 77),
		"nobody":              changed(14+16, 10),
		"tcp":                 frame(ipv4{src: "9.9.9.9", dst: client.String(), proto: protoTCP}.packet(tcp(53, 4000, flagACK)), etherIPv4),
		"icmp":                frame(ipv4{src: "9.9.9.9", dst: "240.0.0.1", proto: protoICMP}.packet(icmp(3, 1)), etherIPv4),
		"a fragment":          changed(14+7, 3),
		"arp":                 frame(make([]byte, 28), etherARP),
		"not ip":              frame(make([]byte, 28), 0x88cc),
	} {
		if verdict := run(t, d.bpf.NfDnsReturn, tg, packet); verdict != dropped {
			t.Errorf("%s: verdict %#x, want a drop", name, verdict)
		}
	}
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	if verdict := runExact(t, d.bpf.NfDnsReturn, tg, answer); verdict != dropped {
		t.Errorf("after the attachment's end: verdict %#x, want a drop", verdict)
	}
}

func TestQueriesThatAreDropped(t *testing.T) {
	d, tg, id := dnsWorld(t, packetPolicy())
	query := udp(4000, 53)
	v4 := func(h ipv4) []byte { h.proto = protoUDP; return h.packet(query) }
	for name, packet := range map[string][]byte{
		"tagged":               frame(v4(ipv4{dst: "9.9.9.9"}), etherVLAN, etherIPv4),
		"tagged twice":         frame(v4(ipv4{dst: "9.9.9.9"}), etherQinQ, etherVLAN, etherIPv4),
		"options":              frame(v4(ipv4{dst: "9.9.9.9", options: []byte{1, 1, 1, 0}}), etherIPv4),
		"the first fragment":   frame(v4(ipv4{dst: "9.9.9.9", frag: 0x2000}), etherIPv4),
		"an extension header":  frame(ipv6{dst: "2620:fe::fe", proto: protoDstOpts}.packet(join([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, query)), etherIPv6),
		"a v6 fragment header": frame(ipv6{dst: "2620:fe::fe", proto: protoFragment}.packet(join([]byte{protoUDP, 0, 0, 1, 0, 0, 0, 0}, query)), etherIPv6),
		"everybody":            frame(v4(ipv4{dst: "255.255.255.255"}), etherIPv4),
		"a group":              udp6("ff02::1", 53),
		"loopback":             frame(v4(ipv4{dst: "127.0.0.53"}), etherIPv4),
		"no address":           frame(v4(ipv4{dst: "0.0.0.0"}), etherIPv4),
		"a DNS address":        frame(v4(ipv4{dst: "127.128.0.1"}), etherIPv4),
		"a v6 DNS address":     udp6("fd4e:4644:4e53::1", 53),
		"mapped":               udp6("::ffff:9.9.9.9", 53),
	} {
		if name == "mapped" {
			copy(packet[14+8:], netip.MustParseAddr("::ffff:10.0.0.2").AsSlice())
		}
		before, err := d.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		verdict := run(t, d.bpf.NfOutL2, tg, packet)
		after, err := d.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		if verdict != dropped || after.Drops["dns"] != before.Drops["dns"]+1 {
			t.Errorf("%s: verdict %#x, drops %v, before %v", name, verdict, after.Drops, before.Drops)
		}
	}
	for _, dst := range []string{"fd4e:4644:4e53::1", "fd4e:4644:4e53:0:ffff::"} {
		if verdict := run(t, d.bpf.NfOutL2, tg, udp6(dst, 253)); verdict != dropped {
			t.Errorf("%s: verdict %#x, want a drop", dst, verdict)
		}
	}
	// A later fragment has no port; its address decides.
	if verdict := run(t, d.bpf.NfOutL2, tg, frame(v4(ipv4{dst: "192.0.2.1", frag: 3}), etherIPv4)); verdict != passed {
		t.Errorf("a later fragment: verdict %#x", verdict)
	}
	if err := d.unlisten(); err != nil {
		t.Fatal(err)
	}
	if verdict := run(t, d.bpf.NfOutL2, tg, udp4("192.0.2.1", 53)); verdict != dropped {
		t.Errorf("nobody listens: verdict %#x, want a drop", verdict)
	}
}

func TestQueriesWithoutDNS(t *testing.T) {
	p := packetPolicy()
	p.DNS.Mode = policy.DNSDisabled
	d, tg, id := dnsWorld(t, p)
	for _, mode := range []policy.Mode{policy.ModeAllowlist, policy.ModeDisabled} {
		p.Mode = mode
		replace(t, d, id, p)
		for dst, want := range map[string]uint32{
			"192.0.2.1": passed, nameserver4.String(): redirected,
		} {
			if verdict := run(t, d.bpf.NfOutL2, tg, udp4(dst, 53)); verdict != want {
				t.Errorf("%s: %s: verdict %#x, want %#x", mode, dst, verdict, want)
			}
		}
		if verdict := run(t, d.bpf.NfOutL2, tg, udp6(nameserver6.String(), 53)); verdict != redirected {
			t.Errorf("%s: %s: verdict %#x, want a redirect", mode, nameserver6, verdict)
		}
	}
}

// The flows of one attachment are bounded, and never another's; over ones go.
func TestDNSFlowsAreBounded(t *testing.T) {
	d, tg, _ := dnsWorld(t, packetPolicy())
	other := vethTarget(t, "v1")
	replace(t, d, attach(t, d, other), packetPolicy())
	run(t, d.bpf.NfOutL2, other, checksummed(udp4("9.9.9.9", 53)))
	query := udp4("9.9.9.9", 53)
	for port := range 3000 {
		binary.BigEndian.PutUint16(query[14+20:], uint16(10000+port))
		if verdict := run(t, d.bpf.NfOutL2, tg, query); verdict != redirected {
			t.Fatalf("query %d: verdict %#x", port, verdict)
		}
	}
	all := func() map[bpfDnsFlowKey]bpfDnsFlow {
		flows := map[bpfDnsFlowKey]bpfDnsFlow{}
		var key bpfDnsFlowKey
		var flow bpfDnsFlow
		for entries := d.bpf.NfDnsFlows.Iterate(); entries.Next(&key, &flow); {
			flows[key] = flow
		}
		return flows
	}
	count := map[uint32]int{}
	for key := range all() {
		count[key.Attachment]++
	}
	most := int(bpfLimitDNS_SETS) * int(bpfLimitDNS_WAYS)
	if len(count) != 2 || count[1] > most || count[1] < most/2 || count[2] != 1 {
		t.Errorf("%v flows by attachment, want up to %d, and 1", count, most)
	}
	for key, flow := range all() {
		flow.Deadline = 1
		if err := d.bpf.NfDnsFlows.Put(&key, &flow); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.endDNSFlows(); err != nil {
		t.Fatal(err)
	}
	if left := all(); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

func TestDNSAddresses(t *testing.T) {
	for _, index := range []uint32{1, 255, 256, maxAttachments - 1} {
		for _, a := range []netip.Addr{dnsAddress4(index), dnsAddress6(index)} {
			if got, ok := CgroupIndex(a); !ok || got != index {
				t.Errorf("%s is of %d (%t), want %d", a, got, ok, index)
			}
			if _, ok := InterfaceIndex(a); ok {
				t.Errorf("%s is an interface's", a)
			}
		}
	}
	for _, a := range []string{"127.0.0.1", "127.128.0.0", "127.143.255.255", "240.0.0.1", "::1", "fd4e:4644:4e55::1"} {
		if got, ok := CgroupIndex(netip.MustParseAddr(a)); ok {
			t.Errorf("%s is of %d", a, got)
		}
	}
}

// TestMTU: whoever answers an interface knows what its device takes by now.
func TestMTU(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	interfaces, ok := d.Index(attach(t, d, tg))
	cgroups, also := d.Index(attach(t, d, cgroupTarget(t)))
	if !ok || !also {
		t.Fatal("not attached")
	}
	link, err := netlink.LinkByIndex(tg.Ifindex)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(index uint32, want int) {
		t.Helper()
		if mtu, err := d.MTU(index); err != nil || mtu != want {
			t.Errorf("%d, %v, want %d", mtu, err, want)
		}
	}
	expect(interfaces, 1500)
	if err := netlink.LinkSetMTU(link, 576); err != nil {
		t.Fatal(err)
	}
	expect(interfaces, 576)
	expect(cgroups, 0)
	expect(maxAttachments-1, 0)
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if mtu, err := d.MTU(interfaces); !errors.Is(err, unix.ENODEV) && mtu != 0 {
		t.Errorf("of a device that is gone: %d, %v", mtu, err)
	}
}
