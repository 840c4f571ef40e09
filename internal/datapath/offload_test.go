// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// A packet whose checksum is to be written later, into its own destination, is
// another packet by the time it leaves.
func TestPacketsThatRewriteThemselvesAreDropped(t *testing.T) {
	const allowed, port = "198.51.100.7", 443
	w, d, id := worldOf(t, testenv.VethDevice, &policy.Policy{
		Mode:    policy.ModeAllowlist,
		Replies: policy.RepliesDeny,
		Allow: []policy.Rule{
			rule(allowed+"/32", ports(port, port, policy.UDP), ports(port, port, policy.TCP)), rule("2001:db8:100::/48"),
		},
	})
	withoutOffload(t, "up0")
	seen := testenv.Observe(t, w.Outside, "eth0")
	const eth, v4, v6 = 14, 20, 40

	datagram := join(udp(4000, port), make([]byte, 10))
	binary.BigEndian.PutUint16(datagram[4:], uint16(len(datagram)))
	segment := join(tcp(4000, port, flagSYN|flagACK), make([]byte, 10))

	// UDP, and TCP, to another port.
	body := join(datagram)
	summing(body, 22)
	sendFrame(t, w, etherIPv4, sealed(ipv4{src: "10.77.0.2", dst: allowed, proto: protoUDP}.packet(body)), &later{eth + v4, 2})
	body = join(segment)
	summing(body, 22)
	sendFrame(t, w, etherIPv4, sealed(ipv4{src: "10.77.0.2", dst: allowed, proto: protoTCP}.packet(body)), &later{eth + v4, 2})

	// 2001:db8:100::7 to 2001:db8:200::7, by the sum from behind the hop limit, which changes on the way.
	packet := ipv6{src: "fd77::2", dst: "2001:db8:100::7", proto: protoUDP}.packet(join(datagram))
	summing(packet[8:], 0x200)
	sendFrame(t, w, etherIPv6, packet, &later{eth + 8, 16 + 4})

	// What everybody sends passes still, and shows that the others are through.
	sendFrame(t, w, etherIPv4, sealed(ipv4{src: "10.77.0.2", dst: allowed, proto: protoUDP}.packet(datagram)), &later{eth + v4, 6})
	sendFrame(t, w, etherIPv4, sealed(ipv4{src: "10.77.0.2", dst: allowed, proto: protoTCP}.packet(segment)), &later{eth + v4, 16})
	sendFrame(t, w, etherIPv6, ipv6{src: "fd77::2", dst: "2001:db8:100::7", proto: protoUDP}.packet(datagram), &later{eth + v6, 6})
	forbidden := func(p testenv.Packet) bool {
		return p.Dst == netip.MustParseAddr("2001:db8:200::7") || p.Dst == netip.MustParseAddr(allowed) && p.Port != port
	}
	seen.Await(t, 2, testenv.To(netip.MustParseAddr(allowed)))
	seen.Await(t, 1, testenv.To(netip.MustParseAddr("2001:db8:100::7")))
	if got := seen.Sum(t, forbidden); got.Count != 0 {
		t.Errorf("%d packets left for where no rule allows: %v", got.Count, seen.Packets(t))
	}
	c, err := d.Counters(id)
	if err != nil || c.Drops["malformed"] != 3 {
		t.Errorf("drops %v, %v; want 3 malformed", c.Drops, err)
	}
}

// withoutOffload has the kernel write the checksums of what leaves by the device,
// as for a network card that cannot (ethtool -K DEVICE tx off).
func withoutOffload(t *testing.T, device string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_STXCSUM} // struct ethtool_value
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		t.Fatalf("switch off checksum offload of %s: %v", device, errno)
	}
}
