// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// cgroupHost is a host of its own with an attached cgroup for its processes.
type cgroupHost struct {
	d       *Datapath
	id      string
	cg      *testenv.Cgroup
	ns      *testenv.NS // 10.5.0.1, and a default route by d0
	outside *testenv.NS // behind d0
}

func hostWithCgroup(t *testing.T, p *policy.Policy) cgroupHost {
	t.Helper()
	h := cgroupHost{d: open(t, pinDir(t)), cg: testenv.NewCgroup(t), ns: testenv.NewNS(t), outside: testenv.NewNS(t)}
	tg, err := target.ResolveCgroup(h.cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	h.id = attach(t, h.d, tg)
	replace(t, h.d, h.id, p)
	testenv.Veth(t, testenv.End{NS: h.ns, Name: "d0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.1/24")}},
		testenv.End{NS: h.outside, Name: "d0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.2/24")}})
	h.ns.Route(t, netip.MustParsePrefix("0.0.0.0/0"), netip.Addr{}, "d0")
	return h
}

// hostService is a UDP socket of the host's, on every address.
func hostService(t *testing.T, ns *testenv.NS, port uint16) net.PacketConn {
	t.Helper()
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		})
		return errors.Join(ctlErr, err)
	}}
	var conn net.PacketConn
	var err error
	ns.Do(func() { conn, err = listen.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", port)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// nothingReached fails the test if conn got anything before what is sent to it now.
func nothingReached(t *testing.T, ns *testenv.NS, conn net.PacketConn) {
	t.Helper()
	port := conn.LocalAddr().(*net.UDPAddr).Port
	if _, err := ns.Dial(t, "udp4", fmt.Sprintf("127.0.0.1:%d", port)).Write([]byte("from the host")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if string(buf[:n]) == "from the host" {
			return
		}
		t.Errorf("%d bytes from %s reached a service of the host's", n, from)
	}
}

// Bound to lo, a socket sends a remote address through it, and the host receives
// that as its own.
func TestARuleForARemoteAddressIsNoneForTheHost(t *testing.T) {
	const remote = "198.51.100.7"
	h := hostWithCgroup(t, &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule(remote + "/32")}})
	service := hostService(t, h.ns, 5555)
	w := testenv.StartWorkload(t, h.ns, h.cg)
	for _, kind := range []testenv.ProbeKind{testenv.UDPSendto, testenv.UDPConnected} {
		w.Probe(t, testenv.Probe{Kind: kind, To: netip.MustParseAddrPort(remote + ":5555"), Device: "lo"})
		nothingReached(t, h.ns, service)
	}
}

// broadcastBesides sends to 127.255.255.255, on a port that it listens on itself.
var broadcastBesides = testenv.NewFunc("broadcast", func([]string) error {
	var fds [2]int
	for i, option := range []int{unix.SO_REUSEADDR, unix.SO_BROADCAST} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			return err
		}
		fds[i] = fd
	}
	if err := unix.Bind(fds[0], &unix.SockaddrInet4{Port: 5555}); err != nil {
		return err
	}
	err := unix.Sendto(fds[1], []byte("to all"), 0, &unix.SockaddrInet4{Port: 5555, Addr: [4]byte{127, 255, 255, 255}})
	if !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("sendto: %w, want EPERM", err)
	}
	return nil
})

// One socket of one's own that hears a broadcast does not make the others own.
func TestBroadcastThroughLoopbackReachesNotOnlyOwn(t *testing.T) {
	h := hostWithCgroup(t, &policy.Policy{Mode: policy.ModeDenylist})
	service := hostService(t, h.ns, 5555)
	cmd := broadcastBesides.Command()
	testenv.Start(t, cmd, h.ns, h.cg)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	nothingReached(t, h.ns, service)
}

// connectFrom connects from 127.0.0.1:4444 to the address and must not succeed.
var connectFrom = testenv.NewFunc("connect-from", func(args []string) error {
	dialer := net.Dialer{
		Timeout:   300 * time.Millisecond,
		LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:4444")),
	}
	conn, err := dialer.Dial("tcp4", args[0])
	if err == nil {
		return errors.Join(errors.New("connected"), conn.Close())
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return err
})

// A SYN to a connection in TIME_WAIT is given to the listener, though the lookup
// finds no socket for it.
func TestTimeWaitHidesNoListener(t *testing.T) {
	h := hostWithCgroup(t, &policy.Policy{Mode: policy.ModeAllowlist})
	l := h.ns.Listen(t, "tcp4", "127.0.0.1:5556")
	var client net.Conn
	var err error
	h.ns.Do(func() {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:4444"))}
		client, err = dialer.Dial("tcp4", l.Addr().String())
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil { // the first to close waits
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("read from a closed connection")
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := connectFrom.Command(l.Addr().String())
	testenv.Start(t, cmd, h.ns, h.cg)
	if err := cmd.Wait(); err != nil {
		t.Error("to a service of the host's with a connection in TIME_WAIT:", err)
	}
	if c, err := h.d.Counters(h.id); err != nil || c.PacketsAllowed != 0 {
		t.Errorf("%d packets passed, %v", c.PacketsAllowed, err)
	}
}

// A transparent proxy takes connections to addresses that no socket has: on lo,
// where nobody is seen to listen, only the loopback addresses pass.
func TestNobodyListensOnlyAtLoopbackAddresses(t *testing.T) {
	h := hostWithCgroup(t, &policy.Policy{Mode: policy.ModeDenylist})
	h.ns.Own(t, netip.MustParsePrefix("203.0.113.0/24"))
	w := testenv.StartWorkload(t, h.ns, h.cg)
	refused := testenv.Probe{Kind: testenv.TCP, To: netip.MustParseAddrPort("127.1.0.1:80")}
	if out := w.Probe(t, refused); out.Errno != unix.ECONNREFUSED {
		t.Errorf("nobody at 127.1.0.1: %s, want ECONNREFUSED", out)
	}
	before, err := h.d.Counters(h.id)
	if err != nil {
		t.Fatal(err)
	}
	proxied := testenv.Probe{Kind: testenv.TCP, To: netip.MustParseAddrPort("203.0.113.9:80"), Wait: 100 * time.Millisecond}
	if out := w.Probe(t, proxied); out.Answered || out.Errno == unix.ECONNREFUSED {
		t.Errorf("through lo to 203.0.113.9: %s", out)
	}
	after, err := h.d.Counters(h.id)
	if err != nil || after.PacketsAllowed != before.PacketsAllowed || after.Drops["loopback"] == before.Drops["loopback"] {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
}

// In denylist mode, too, what the host has opened to the workload through lo is a
// reply flow, and stays one.
func TestRepliesThroughLoopbackOutliveAPolicy(t *testing.T) {
	denylist := &policy.Policy{Mode: policy.ModeDenylist}
	h := hostWithCgroup(t, denylist)
	testenv.StartWorkload(t, h.ns, h.cg).Serve(t, 7777)
	conn := testenv.StartWorkload(t, h.ns, nil).Connect(t, netip.MustParseAddrPort("127.0.0.1:7777"))
	if !conn.Echoes(t, testenv.Patience) {
		t.Fatal("no echo through lo")
	}
	denylist.Deny = []policy.Rule{rule("192.0.2.0/24")}
	replace(t, h.d, h.id, denylist)
	if err := h.d.endFlows(0); err != nil {
		t.Fatal(err)
	}
	if !conn.Echoes(t, testenv.Patience) {
		t.Error("no echo through lo after a policy that does not speak of it")
	}
	if n := flows(t, h.d, h.id); n != 1 {
		t.Errorf("%d flows, want 1", n)
	}
	denylist.Deny = []policy.Rule{rule("127.0.0.0/8")}
	replace(t, h.d, h.id, denylist)
	if n := flows(t, h.d, h.id); n != 0 {
		t.Errorf("%d flows to a denied peer, want none", n)
	}
}
