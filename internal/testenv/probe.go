// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Probe is one way of sending. Its calls are the plain ones, so that Outcome holds
// what a program would see.
type Probe struct {
	Kind ProbeKind
	To   netip.AddrPort // the port is unused by Echo and Raw
	// Protocol is the IP protocol number of Raw.
	Protocol uint8 `json:",omitempty"`
	// Count is how many packets to send; 0 means one. TCP ignores it.
	Count int `json:",omitempty"`
	// Mapped sends to an IPv4 address through an IPv6 socket, as ::ffff:a.b.c.d.
	Mapped bool `json:",omitempty"`
	// Device binds the socket to a device.
	Device string `json:",omitempty"`
	// Wait is how long to wait for an answer: the SYN-ACK, the echo reply, or what
	// an echo server returns to UDP. 0 means one second for TCP, and for the others
	// not to wait.
	Wait time.Duration `json:",omitempty"`
}

// ProbeKind says by which calls a probe sends.
type ProbeKind string

// The kinds of probes.
const (
	TCP          ProbeKind = "tcp"           // connect
	UDPConnected ProbeKind = "udp-connected" // connect, send
	UDPSendto    ProbeKind = "udp-sendto"    // sendto on an unconnected socket
	UDPSendmmsg  ProbeKind = "udp-sendmmsg"  // all packets by one sendmmsg
	Echo         ProbeKind = "icmp-echo"     // echo request on a raw ICMP socket
	Raw          ProbeKind = "raw"           // a few bytes of any IP protocol
)

// Outcome is what the sender of a probe saw.
type Outcome struct {
	// Call and Errno are the first call that failed and why; zero if none did.
	Call  string     `json:",omitempty"`
	Errno unix.Errno `json:",omitempty"`
	// Errors counts the calls that failed.
	Errors map[unix.Errno]int `json:",omitempty"`
	// Sent counts the packets that the kernel took. A filter may drop them all the
	// same.
	Sent int
	// Answered is set when TCP connected, or another probe got an answer.
	Answered bool
	Elapsed  time.Duration
}

func (o Outcome) String() string {
	s := fmt.Sprintf("%d sent", o.Sent)
	if o.Answered {
		s += ", answered"
	}
	if o.Errno != 0 {
		s += fmt.Sprintf(", %s: %s", o.Call, unix.ErrnoName(o.Errno))
	}
	return fmt.Sprintf("%s, %s", s, o.Elapsed)
}

// Send sends a probe from the calling thread's network namespace and cgroup. The
// error is that something other than sending went wrong.
func Send(p Probe) (Outcome, error) {
	s, err := openSender(p)
	if err != nil {
		return Outcome{}, fmt.Errorf("probe %s %s: %w", p.Kind, p.To, err)
	}
	defer unix.Close(s.fd)
	start := time.Now()
	s.send()
	s.out.Elapsed = time.Since(start)
	return s.out, nil
}

type sender struct {
	Probe
	fd  int
	sa  unix.Sockaddr
	v6  bool // the socket's family
	out Outcome
	n   uint64 // packets tried so far
}

func openSender(p Probe) (*sender, error) {
	s := &sender{Probe: p, v6: p.Mapped || !p.To.Addr().Is4()}
	s.Count = max(s.Count, 1)
	if s.Wait == 0 && s.Kind == TCP {
		s.Wait = time.Second
	}
	port := int(p.To.Port())
	typ, proto := unix.SOCK_DGRAM, 0
	switch p.Kind {
	case TCP:
		typ = unix.SOCK_STREAM
	case UDPConnected, UDPSendto, UDPSendmmsg:
	case Echo:
		typ, proto, port = unix.SOCK_RAW, unix.IPPROTO_ICMP, 0
		if s.v6 {
			proto = unix.IPPROTO_ICMPV6
		}
	case Raw:
		typ, proto, port = unix.SOCK_RAW, int(p.Protocol), 0
	default:
		return nil, errors.New("unknown kind")
	}
	family := unix.AF_INET
	s.sa = &unix.SockaddrInet4{Port: port, Addr: addr4(p.To.Addr())}
	if s.v6 {
		family = unix.AF_INET6
		s.sa = &unix.SockaddrInet6{Port: port, Addr: p.To.Addr().As16()}
	}
	var err error
	if s.fd, err = unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if p.Device != "" {
		if err := unix.BindToDevice(s.fd, p.Device); err != nil {
			return nil, errors.Join(fmt.Errorf("bind to %s: %w", p.Device, err), unix.Close(s.fd))
		}
	}
	return s, nil
}

func addr4(a netip.Addr) (b [4]byte) {
	if a = a.Unmap(); a.Is4() {
		b = a.As4()
	}
	return b
}

func (s *sender) send() {
	switch s.Kind {
	case TCP:
		s.connectTCP()
	case UDPSendmmsg:
		var err error
		if s.out.Sent, err = s.sendmmsg(); err != nil {
			s.failed("sendmmsg", err)
		}
	case UDPConnected:
		if err := unix.Connect(s.fd, s.sa); err != nil {
			s.failed("connect", err)
			return
		}
		s.each("send", func(b []byte) error { return unix.Send(s.fd, b, 0) })
	default:
		s.each("sendto", func(b []byte) error { return unix.Sendto(s.fd, b, 0, s.sa) })
	}
	if s.Kind != TCP && s.Wait != 0 && s.out.Sent != 0 {
		s.out.Answered = s.answered()
	}
}

// sendOne sends one packet to another address by the same socket.
func (s *sender) sendOne(to netip.AddrPort) error {
	payload := s.packet(0)
	if s.v6 {
		return unix.Sendto(s.fd, payload, 0, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	}
	return unix.Sendto(s.fd, payload, 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: addr4(to.Addr())})
}

func (s *sender) failed(call string, err error) {
	var errno unix.Errno
	errors.As(err, &errno)
	if s.out.Call == "" {
		s.out.Call, s.out.Errno, s.out.Errors = call, errno, map[unix.Errno]int{}
	}
	s.out.Errors[errno]++
}

func (s *sender) connectTCP() {
	err := unix.Connect(s.fd, s.sa)
	if err == unix.EINPROGRESS {
		if !await(s.fd, unix.POLLOUT, s.Wait) {
			return
		}
		var errno int
		if errno, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
	}
	if err != nil {
		s.failed("connect", err)
		return
	}
	s.out.Answered = true
}

func (s *sender) each(call string, send func([]byte) error) {
	for i := range s.Count {
		err := send(s.packet(i))
		if err == nil {
			s.out.Sent++
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			// Nobody refused it: packets of before are still on their way, and there was no
			// room for one more. Its number is the next one's.
			s.n--
		}
		s.failed(call, err)
	}
}

// packet returns what to hand to the kernel as the i-th packet.
func (s *sender) packet(i int) []byte {
	payload := stamp(s.n)
	s.n++
	if s.Kind != Echo {
		return payload
	}
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: i, Data: payload}}
	if s.v6 {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel adds the checksum
	}
	b, err := m.Marshal(nil)
	if err != nil {
		panic(fmt.Sprintf("testenv: echo request: %v", err))
	}
	return b
}

// answered waits for a packet from the destination. Raw sockets see every packet
// of their protocol, our own on lo as well.
func (s *sender) answered() bool {
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(s.Wait); await(s.fd, unix.POLLIN, time.Until(deadline)); {
		n, from, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			s.failed("recv", err) // what an ICMP error reported
			return false
		}
		if s.Kind == UDPConnected || sourceOf(from) == s.To.Addr().Unmap() && (s.Kind != Echo || s.isReply(buf[:n])) {
			return true
		}
	}
	return false
}

func (s *sender) isReply(b []byte) bool {
	if s.v6 {
		return len(b) > 0 && b[0] == byte(ipv6.ICMPTypeEchoReply)
	}
	// A raw IPv4 socket returns the IP header as well (raw(7)).
	if len(b) == 0 || len(b) <= int(b[0]&15)*4 {
		return false
	}
	return b[int(b[0]&15)*4] == byte(ipv4.ICMPTypeEchoReply)
}

func sourceOf(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr).Unmap()
	}
	return netip.Addr{}
}

// await reports whether the event came within d.
func await(fd int, event int16, d time.Duration) bool {
	for deadline := time.Now().Add(d); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, int(left.Milliseconds())+1)
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}

// stampMagic begins the payload of every probe that carries one.
const stampMagic = 0x6e657466656e6365 // "netfence"

const stampSize = 24

// stamp returns a payload that tells when it was made, and a number; see Seen.
func stamp(number uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, stampMagic)
	b = binary.BigEndian.AppendUint64(b, uint64(Monotonic()))
	return binary.BigEndian.AppendUint64(b, number)
}

// Monotonic reads CLOCK_MONOTONIC, which all processes of the machine share.
func Monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("testenv: clock: %v", err))
	}
	return time.Duration(ts.Nano())
}
