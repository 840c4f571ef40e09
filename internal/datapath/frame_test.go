// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// Frames as a workload with a device of its own can make them: through a packet
// socket, over a real device, into a real stack.

// worldOf attaches the link of a World around the suite's own namespace.
func worldOf(t *testing.T, device testenv.Device, p *policy.Policy) (*testenv.World, *Datapath, string) {
	t.Helper()
	d := open(t, pinDir(t))
	w := testenv.NewWorld(t, testenv.Self(t), device)
	tg, err := target.ResolveInterface(w.Link, target.Ingress, "")
	if err != nil {
		t.Fatal(err)
	}
	id := attach(t, d, tg)
	replace(t, d, id, p)
	return w, d, id
}

// later says that the sender has left the checksum of a frame to be written by
// whoever sends it on: from which byte on, and how far behind that byte to.
type later struct{ start, offset int }

// header is struct virtio_net_hdr (include/uapi/linux/virtio_net.h).
func (l later) header() []byte {
	h := make([]byte, 10)
	h[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(h[6:], uint16(l.start))
	binary.NativeEndian.PutUint16(h[8:], uint16(l.offset))
	return h
}

// sendFrame sends a frame by the workload's device to its gateway; l may be nil.
func sendFrame(t *testing.T, w *testenv.World, etherType int, packet []byte, l *later) {
	t.Helper()
	frame := join(hardwareAddr(t, w.Host, gatewayOf(w)), hardwareAddr(t, w.Workload, "eth0"), be16(etherType), packet)
	var err error
	w.Workload.Do(func() { err = writeFrame(frame, l) })
	if err != nil {
		t.Fatalf("send frame: %v", err)
	}
}

func gatewayOf(w *testenv.World) string {
	if _, err := netlink.LinkByName("bridge0"); err == nil {
		return "bridge0"
	}
	return w.Link
}

func hardwareAddr(t *testing.T, ns *testenv.NS, device string) (mac []byte) {
	t.Helper()
	ns.Do(func() {
		l, err := netlink.LinkByName(device)
		if err != nil {
			t.Errorf("%s: %v", device, err)
			return
		}
		mac = l.Attrs().HardwareAddr
	})
	return mac
}

func writeFrame(frame []byte, l *later) (err error) {
	device, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if l != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return err
		}
		frame = join(l.header(), frame)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: device.Attrs().Index}); err != nil {
		return err
	}
	_, err = unix.Write(fd, frame)
	return err
}

// checksum is the internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// sealed sets the header checksum of an IPv4 packet, which every router checks.
func sealed(packet []byte) []byte {
	size := int(packet[0]&15) * 4
	binary.BigEndian.PutUint16(packet[10:], 0)
	binary.BigEndian.PutUint16(packet[10:], checksum(packet[:size]))
	return packet
}

// summing changes the last two bytes so that the checksum of b is want.
func summing(b []byte, want uint16) {
	last := b[len(b)-2:]
	binary.BigEndian.PutUint16(last, 0)
	binary.BigEndian.PutUint16(last, ^checksum(join(be16(int(^want)), be16(int(checksum(b))))))
}
