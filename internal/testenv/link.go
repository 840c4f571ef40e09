// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a pair of devices.
type End struct {
	NS    *NS
	Name  string
	Addrs []netip.Prefix
}

// Veth makes a pair of devices between two namespaces, up, with addresses that are
// usable at once.
func Veth(t TB, a, b End) {
	t.Helper()
	a.NS.do(t, "veth "+a.Name, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = a.Name
		veth := netlink.NewVeth(attrs)
		veth.PeerName = b.Name
		veth.PeerNamespace = netlink.NsFd(b.NS.file.Fd())
		return netlink.LinkAdd(veth)
	})
	t.Cleanup(func() { a.NS.remove(t, a.Name) })
	a.up(t)
	b.up(t)
	a.awaitCarrier(t)
	b.awaitCarrier(t)
}

// up brings the device up and gives it its addresses. Duplicate address detection
// is off, since it would keep IPv6 addresses unusable for a second.
func (e End) up(t TB) {
	t.Helper()
	e.NS.do(t, "set up "+e.Name, func() error {
		link, err := netlink.LinkByName(e.Name)
		if err != nil {
			return err
		}
		dad := filepath.Join("/proc/sys/net/ipv6/conf", e.Name, "accept_dad")
		if err := os.WriteFile(dad, []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err // no such file: no IPv6 on this kernel
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		for _, addr := range e.Addrs {
			a := &netlink.Addr{IPNet: ipNet(addr)}
			if addr.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrReplace(link, a); err != nil {
				return fmt.Errorf("address %s: %w", addr, err)
			}
		}
		return nil
	})
}

// awaitCarrier waits until the device sends. The kernel activates its queue some
// time after the other end came up, up to a second, and drops packets until then.
func (e End) awaitCarrier(t TB) {
	t.Helper()
	Eventually(t, "carrier of "+e.Name, func() bool {
		ready := false
		e.NS.do(t, "look at "+e.Name, func() error {
			link, err := netlink.LinkByName(e.Name)
			if err == nil {
				state := link.Attrs().OperState
				ready = state == netlink.OperUp || state == netlink.OperUnknown && link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
			}
			return err
		})
		return ready
	})
}

// remove deletes a device, unless the test has done so already.
func (ns *NS) remove(t TB, device string) {
	t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName(device)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !errors.Is(err, unix.ENODEV) {
			t.Errorf("remove %s: %v", device, err)
		}
	})
}

// Bridge makes a bridge, up, with the given devices as its ports.
func Bridge(t TB, bridge End, ports ...string) {
	t.Helper()
	bridge.NS.do(t, "bridge "+bridge.Name, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridge.Name
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		for _, port := range ports {
			link, err := netlink.LinkByName(port)
			if err != nil {
				return fmt.Errorf("port %s: %w", port, err)
			}
			if err := netlink.LinkSetMaster(link, br); err != nil {
				return fmt.Errorf("port %s: %w", port, err)
			}
		}
		return nil
	})
	t.Cleanup(func() { bridge.NS.remove(t, bridge.Name) })
	bridge.up(t)
	if len(ports) > 0 {
		bridge.awaitCarrier(t)
	}
}

// Tap makes a tap device at each end and carries the frames between them, as a
// virtual machine monitor would.
func Tap(t TB, host, guest End) {
	t.Helper()
	tunPair(t, host, guest, unix.IFF_TAP)
}

// Tun is Tap for layer 3 devices, whose packets have no link-layer header.
func Tun(t TB, host, guest End) {
	t.Helper()
	tunPair(t, host, guest, unix.IFF_TUN)
}

func tunPair(t TB, host, guest End, mode uint16) {
	t.Helper()
	a, b := openTun(t, host, mode), openTun(t, guest, mode)
	var carriers sync.WaitGroup
	for from, to := range map[*os.File]*os.File{a: b, b: a} {
		carriers.Go(func() { carry(t, from, to) })
	}
	t.Cleanup(func() {
		_, _ = a.Close(), b.Close() // ends the carriers and removes the devices
		carriers.Wait()
	})
	host.up(t)
	guest.up(t)
	host.awaitCarrier(t)
	guest.awaitCarrier(t)
}

// openTun makes the device. It goes away when the file is closed (the kernel's
// Documentation/networking/tuntap.rst).
func openTun(t TB, e End, mode uint16) *os.File {
	t.Helper()
	var file *os.File
	e.NS.do(t, "tun "+e.Name, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(e.Name)
		if err == nil {
			ifr.SetUint16(mode | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		// Only now can the file be polled.
		file = os.NewFile(uintptr(fd), "tun "+e.Name)
		return nil
	})
	return file
}

func carry(t TB, from, to *os.File) {
	frame := make([]byte, 64<<10)
	for {
		n, err := from.Read(frame)
		if err == nil {
			_, err = to.Write(frame[:n])
		}
		switch {
		case err == nil, errors.Is(err, unix.EIO): // EIO: that end is down
		case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EBADFD):
			return // the test ended, or deleted the device
		default:
			t.Errorf("carry frames from %s to %s: %v", from.Name(), to.Name(), err)
			return
		}
	}
}
