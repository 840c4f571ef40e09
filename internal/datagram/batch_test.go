// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func listen(t *testing.T, address string) (*Conn, netip.AddrPort) {
	t.Helper()
	network := "udp4"
	if netip.MustParseAddrPort(address).Addr().Is6() {
		network = "udp6"
	}
	pc, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(pc.LocalAddr().String())
	c, err := NewConn(pc.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, at
}

func unsendable(t *testing.T) func(int, error) {
	return func(i int, err error) { t.Errorf("%d is not sent: %v", i, err) }
}

// TestBatch holds that datagrams arrive whole, in order, with their addresses,
// in as many batches as they need.
func TestBatch(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		in, to := listen(t, address)
		out, from := listen(t, address)
		v6 := to.Addr().Is6()
		sent, received := New(10, 32, 0, v6), New(4, 32, 0, v6)
		for i := range 10 {
			if !sent.Add(fmt.Appendf(nil, "%s %d", address, i), to, nil) {
				t.Fatal("no room")
			}
		}
		if sent.Add([]byte("one more"), to, nil) || !sent.Full() || sent.Len() != 10 {
			t.Error("more than there is room for")
		}
		if sent.Send(out, unsendable(t)); sent.Len() != 0 {
			t.Error("some wait still")
		}
		got := 0
		for _, want := range []int{4, 4, 2, 0} {
			n, err := received.Receive(in)
			if err != nil || n != want {
				t.Fatalf("%d, want %d: %v", n, want, err)
			}
			for i := range n {
				data, ok := received.Data(i)
				if !ok || string(data) != fmt.Sprintf("%s %d", address, got) || received.From(i) != from {
					t.Errorf("%q from %v, %v", data, received.From(i), ok)
				}
				got++
			}
		}
	}
}

// TestConnected holds that no address is needed where there is one already.
func TestConnected(t *testing.T) {
	in, to := listen(t, "127.0.0.1:0")
	c, err := net.Dial("udp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	from := c.LocalAddr().String()
	out, err := NewConn(c.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	b := New(2, 8, 0, false)
	b.Add([]byte("a"), netip.AddrPort{}, nil)
	b.Add([]byte("b"), netip.AddrPort{}, nil)
	b.Send(out, unsendable(t))
	received := New(2, 8, 0, false)
	if n, err := received.Receive(in); n != 2 || err != nil || received.From(0).String() != from {
		t.Errorf("%d from %v, %v", n, received.From(0), err)
	}
}

// TestTooLong holds that what does not fit is not taken for whole, and does not
// touch its neighbours.
func TestTooLong(t *testing.T) {
	in, to := listen(t, "127.0.0.1:0")
	c, err := net.Dial("udp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range []string{"12345678", "123456789", "", "1"} {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	b := New(4, 8, 0, false)
	if b.Add([]byte("123456789"), to, nil) || b.Add(nil, to, []byte{1}) {
		t.Error("sent what does not fit")
	}
	n, err := b.Receive(in)
	if err != nil || n != 4 {
		t.Fatal(n, err)
	}
	for i, want := range []string{"12345678", "12345678", "", "1"} {
		if data, ok := b.Data(i); string(data) != want || ok != (i != 1) {
			t.Errorf("%d: %q, %v", i, data, ok)
		}
	}
}

// TestUnsendable holds that one datagram that cannot be sent keeps no other.
func TestUnsendable(t *testing.T) {
	in, to := listen(t, "127.0.0.1:0")
	out, _ := listen(t, "127.0.0.1:0")
	b := New(3, 8, 0, false)
	b.Add([]byte("a"), to, nil)
	b.Add([]byte("b"), netip.AddrPortFrom(to.Addr(), 0), nil)
	b.Add([]byte("c"), to, nil)
	failed := 0
	b.Send(out, func(i int, err error) {
		if failed++; i != 1 || !errors.Is(err, unix.EINVAL) {
			t.Errorf("%d: %v", i, err)
		}
	})
	if failed != 1 {
		t.Errorf("%d to port 0", failed)
	}
	n, err := b.Receive(in)
	if err != nil || n != 2 {
		t.Fatal(n, err)
	}
	if data, _ := b.Data(1); string(data) != "c" {
		t.Errorf("%q", data)
	}
}

// TestControl holds that control messages go and come with their datagram.
func TestControl(t *testing.T) {
	in, to := listen(t, "127.0.0.1:0")
	if err := in.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	space := unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	b := New(2, 8, space, false)
	source := netip.MustParseAddr("127.0.0.9")
	b.Add([]byte("a"), to, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: source.As4()}))
	b.Add([]byte("b"), to, nil)
	out, port := listen(t, "0.0.0.0:0")
	b.Send(out, unsendable(t))
	n, err := b.Receive(in)
	if err != nil || n != 2 {
		t.Fatal(n, err)
	}
	if from := b.From(0); from != netip.AddrPortFrom(source, port.Port()) {
		t.Errorf("from %v", from)
	}
	messages, err := unix.ParseSocketControlMessage(b.Control(0))
	if err != nil || len(messages) != 1 || messages[0].Header.Type != unix.IP_PKTINFO {
		t.Errorf("%v, %v", messages, err)
	}
	in.Close()
	if _, err := b.Receive(in); !errors.Is(err, net.ErrClosed) {
		t.Errorf("received from a closed socket: %v", err)
	}
}
