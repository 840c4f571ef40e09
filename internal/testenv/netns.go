// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace without a name. It lives as long as the test, or as
// long as a process is in it.
type NS struct {
	file *os.File
}

const threadNetns = "/proc/thread-self/ns/net"

// NewNS makes a network namespace with only lo, up.
func NewNS(t TB) *NS {
	t.Helper()
	ns, err := newNS()
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	closeLater(t, ns.file)
	return ns
}

func newNS() (*NS, error) {
	var ns *NS
	var err error
	inThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if err = loopbackUp(); err != nil {
			return
		}
		var f *os.File
		if f, err = os.Open(threadNetns); err == nil {
			ns = &NS{f}
		}
	})
	return ns, err
}

// Self returns the network namespace that the suite runs in, which is where
// goroutines and processes started without a namespace are.
func Self(t TB) *NS {
	t.Helper()
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatalf("own network namespace: %v", err)
	}
	closeLater(t, f)
	return &NS{f}
}

// Path is a path under which a process of the suite finds the namespace, until
// the end of the test.
func (ns *NS) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// Do calls f in the namespace and returns when it returned. The thread is f's
// alone; goroutines that f starts are not in the namespace, sockets and processes
// that it opens and starts are.
func (ns *NS) Do(f func()) {
	inThread(func() {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("testenv: enter network namespace: %v", err))
		}
		f()
	})
}

// inThread calls f on a locked thread whose network namespace f may change. It is
// the caller's goroutine, so that f may end the test, and the thread goes on
// afterwards: a process started on a thread that exits gets its parent-death
// signal.
func inThread(f func()) {
	runtime.LockOSThread()
	own, err := os.Open(threadNetns)
	if err != nil {
		panic(fmt.Sprintf("testenv: own network namespace: %v", err))
	}
	defer func() {
		defer own.Close()
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("testenv: return from network namespace: %v", err))
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// do calls f in the namespace and fails the test with its error.
func (ns *NS) do(t TB, what string, f func() error) {
	t.Helper()
	var err error
	ns.Do(func() { err = f() })
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Dial connects from inside the namespace to an address, not a name, and closes
// the connection with the test.
func (ns *NS) Dial(t TB, network, address string) net.Conn {
	t.Helper()
	var conn net.Conn
	ns.do(t, "dial", func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	closeLater(t, conn)
	return conn
}

// Listen listens inside the namespace until the end of the test.
func (ns *NS) Listen(t TB, network, address string) net.Listener {
	t.Helper()
	var l net.Listener
	ns.do(t, "listen", func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	closeLater(t, l)
	return l
}

// ListenPacket opens a packet socket inside the namespace until the end of the
// test.
func (ns *NS) ListenPacket(t TB, network, address string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	ns.do(t, "listen", func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	closeLater(t, c)
	return c
}

// closeLater closes c with the test. Tests close connections themselves as well,
// hence the error says nothing.
func closeLater(t TB, c interface{ Close() error }) {
	t.Cleanup(func() { _ = c.Close() })
}

// Sysctl sets a value below /proc/sys/net, which shows the namespace of the
// reader: "ipv4/ip_forward".
func (ns *NS) Sysctl(t TB, key, value string) {
	t.Helper()
	ns.do(t, "sysctl "+key, func() error {
		return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0)
	})
}

// Route routes dst by the device, through the gateway if via is valid. The gateway
// need not be in a connected prefix.
func (ns *NS) Route(t TB, dst netip.Prefix, via netip.Addr, device string) {
	t.Helper()
	ns.do(t, fmt.Sprintf("route %s dev %s", dst, device), func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst)}
		if via.IsValid() {
			route.Gw = via.AsSlice()
			route.Flags = int(netlink.FLAG_ONLINK)
		} else {
			route.Scope = netlink.SCOPE_LINK
		}
		return netlink.RouteReplace(route)
	})
}

// Own makes every address of the prefix one of the namespace's own (AnyIP), so that
// a server can stand for a whole network.
func (ns *NS) Own(t TB, prefix netip.Prefix) {
	t.Helper()
	ns.do(t, "own "+prefix.String(), func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(prefix),
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST})
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}
