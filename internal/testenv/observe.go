// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Packet is what an Observer tells packets apart by.
type Packet struct {
	Src, Dst netip.Addr
	// Protocol is IPv4's, or IPv6's first next header.
	Protocol uint8
	// Port is the destination port of TCP and UDP, the type of ICMP, else 0.
	Port uint16
}

// Seen is what an Observer knows about packets that are alike.
type Seen struct {
	Count int
	// LastSent is the latest Monotonic time at which one of them was sent, if they
	// are probes.
	LastSent time.Duration
	// Next is one more than the highest number among them: a Probe or a Flood counts
	// its packets from 0. Of a single one, none is missing before the last if Next is
	// Count.
	Next int
}

func (s Seen) add(other Seen) Seen {
	return Seen{s.Count + other.Count, max(s.LastSent, other.LastSent), max(s.Next, other.Next)}
}

// Observer counts the IP packets that arrive at a device. That a packet did not
// arrive is shown by one sent after it that did: await that one first.
type Observer struct {
	file *os.File
	done chan struct{}

	mu      sync.Mutex
	packets map[Packet]Seen
	err     error
}

// Observe counts what arrives at the device from now on.
func Observe(t TB, ns *NS, device string) *Observer {
	t.Helper()
	o := &Observer{packets: map[Packet]Seen{}, done: make(chan struct{})}
	ns.do(t, "observe "+device, func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		// With protocol 0 nothing arrives before bind names the device (packet(7)).
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		o.file = os.NewFile(uintptr(fd), "packets at "+device)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
			return fmt.Errorf("receive buffer: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("ignore outgoing: %w", err)
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	})
	go o.read()
	t.Cleanup(func() {
		if err := o.stop(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return o
}

func (o *Observer) stop() error {
	err := o.file.Close()
	<-o.done
	return errors.Join(err, o.err)
}

func (o *Observer) read() {
	defer close(o.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := o.file.Read(buf)
		switch {
		case err == nil:
			o.packet(buf[:n])
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENETDOWN): // the device went down, and may come up again
		default:
			o.fail(err)
			return
		}
	}
}

func (o *Observer) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = fmt.Errorf("observe %s: %w", o.file.Name(), err)
}

func (o *Observer) packet(b []byte) {
	p, ok := parsePacket(b)
	if !ok {
		return // ARP and the like
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	one := Seen{Count: 1}
	if i := bytes.Index(b, binary.BigEndian.AppendUint64(nil, stampMagic)); i >= 0 && len(b) >= i+stampSize {
		one.LastSent = time.Duration(binary.BigEndian.Uint64(b[i+8:]))
		one.Next = int(binary.BigEndian.Uint64(b[i+16:])) + 1
	}
	o.packets[p] = o.packets[p].add(one)
}

func parsePacket(b []byte) (p Packet, ok bool) {
	var body []byte
	first := true // fragment
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.Protocol = b[9]
		first = binary.BigEndian.Uint16(b[6:])&0x1fff == 0
		body = b[min(len(b), int(b[0]&15)*4):]
	case len(b) >= 40 && b[0]>>4 == 6:
		p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.Protocol = b[6]
		body = b[40:]
	default:
		return Packet{}, false
	}
	switch {
	case !first || len(body) < 4:
	case p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP:
		p.Port = binary.BigEndian.Uint16(body[2:])
	case p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6:
		p.Port = uint16(body[0])
	}
	return p, true
}

// To matches packets to an address.
func To(addr netip.Addr) func(Packet) bool {
	return func(p Packet) bool { return p.Dst == addr }
}

// Packets returns everything seen so far. It fails the test if the kernel had no
// room for a packet, since counts would be wrong.
func (o *Observer) Packets(t TB) map[Packet]Seen {
	t.Helper()
	conn, err := o.file.SyscallConn()
	if err != nil {
		t.Fatalf("observe: %v", err)
	}
	var stats *unix.TpacketStats
	if ctlErr := conn.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); ctlErr != nil || err != nil {
		t.Fatalf("%s: statistics: %v", o.file.Name(), errors.Join(ctlErr, err))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		t.Fatalf("%v", o.err)
	}
	if stats.Drops != 0 {
		t.Fatalf("%s: %d packets were not counted for want of buffer space", o.file.Name(), stats.Drops)
	}
	return maps.Clone(o.packets)
}

// Sum adds up what was seen so far of the packets that match.
func (o *Observer) Sum(t TB, match func(Packet) bool) Seen {
	t.Helper()
	var sum Seen
	for p, seen := range o.Packets(t) {
		if match(p) {
			sum = sum.add(seen)
		}
	}
	return sum
}

// Await waits until n packets that match have arrived.
func (o *Observer) Await(t TB, n int, match func(Packet) bool) {
	t.Helper()
	if !poll(Patience, func() bool { return o.Sum(t, match).Count >= n }) {
		t.Fatalf("%s: %d packets arrived, want %d; all: %v", o.file.Name(), o.Sum(t, match).Count, n, o.Packets(t))
	}
}
