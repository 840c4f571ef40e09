// SPDX-License-Identifier: Apache-2.0

package target

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// followed makes an OnLink of the namespace that runs until the test ends.
func followed(t *testing.T, ns *testenv.NS) *OnLink {
	t.Helper()
	var o *OnLink
	ns.Do(func() {
		var err error
		if o, err = NewOnLink(); err != nil {
			t.Fatal(err)
		}
	})
	done := make(chan error)
	go func() { done <- o.Run(func(int) {}) }()
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return o
}

func index(t *testing.T, ns *testenv.NS, name string) (ifindex int) {
	t.Helper()
	edit(t, ns, name, func(l netlink.Link) error { ifindex = l.Attrs().Index; return nil })
	return ifindex
}

// sees waits until these prefixes are on the interface's link.
func sees(t *testing.T, o *OnLink, ifindex int, want ...string) {
	t.Helper()
	testenv.Eventually(t, fmt.Sprintf("%v on the link", want), func() bool {
		var got []string
		for _, p := range o.Prefixes(ifindex) {
			got = append(got, p.String())
		}
		return slices.Equal(got, want)
	})
}

func addr(prefix string, flags int) *netlink.Addr {
	p := netip.MustParsePrefix(prefix)
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)}, Flags: flags | unix.IFA_F_NODAD}
}

func adds(a *netlink.Addr) func(netlink.Link) error {
	return func(l netlink.Link) error { return netlink.AddrAdd(l, a) }
}

func deletes(a *netlink.Addr) func(netlink.Link) error {
	return func(l netlink.Link) error { return netlink.AddrDel(l, a) }
}

func TestOnLink(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host := testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: host, Name: "veth1", Addrs: []netip.Prefix{
		netip.MustParsePrefix("2001:db8:1::1/64"), netip.MustParsePrefix("10.0.0.1/24"),
	}}, testenv.End{NS: testenv.NewNS(t), Name: "eth0"})
	o, veth := followed(t, host), index(t, host, "veth1")
	sees(t, o, veth, "2001:db8:1::/64") // not fe80::/10, which needs no look

	// Of two addresses with the same prefix one is enough.
	second := addr("2001:db8:1::2/64", 0)
	edit(t, host, "veth1", adds(second))
	edit(t, host, "veth1", adds(addr("fd00::5/48", 0)))
	sees(t, o, veth, "2001:db8:1::/64", "fd00::/48")
	edit(t, host, "veth1", deletes(second))
	edit(t, host, "veth1", adds(addr("2001:db8:3::3/64", unix.IFA_F_NOPREFIXROUTE)))
	sees(t, o, veth, "2001:db8:1::/64", "2001:db8:3::3/128", "fd00::/48")

	point := addr("2001:db8:4::1/128", 0)
	point.Peer = addr("2001:db8:4::2/128", 0).IPNet
	edit(t, host, "veth1", adds(point))
	sees(t, o, veth, "2001:db8:1::/64", "2001:db8:3::3/128", "2001:db8:4::1/128", "2001:db8:4::2/128", "fd00::/48")

	// Addresses go with the carrier, of their own accord.
	edit(t, host, "veth1", netlink.LinkSetDown)
	sees(t, o, veth)
}

func TestOnLinkOfABridge(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host := testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: host, Name: "veth1"}, testenv.End{NS: testenv.NewNS(t), Name: "eth0"})
	testenv.Bridge(t, testenv.End{NS: host, Name: "bridge0", Addrs: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::1/64")}}, "veth1")
	o, veth, bridge := followed(t, host), index(t, host, "veth1"), index(t, host, "bridge0")
	sees(t, o, bridge, "2001:db8:1::/64")
	sees(t, o, veth, "2001:db8:1::/64")

	late := addr("2001:db8:2::1/64", 0)
	edit(t, host, "bridge0", adds(late))
	sees(t, o, veth, "2001:db8:1::/64", "2001:db8:2::/64")
	edit(t, host, "veth1", netlink.LinkSetNoMaster)
	sees(t, o, veth)
	edit(t, host, "veth1", func(l netlink.Link) error { return netlink.LinkSetMasterByIndex(l, bridge) })
	sees(t, o, veth, "2001:db8:1::/64", "2001:db8:2::/64")
	edit(t, host, "bridge0", netlink.LinkDel)
	sees(t, o, veth)
}

// TestOnLinkMissesNothing where the kernel could not tell of all that has happened.
func TestOnLinkMissesNothing(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host := testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: host, Name: "veth1"}, testenv.End{NS: testenv.NewNS(t), Name: "eth0"})
	var o *OnLink
	host.Do(func() {
		var err error
		if o, err = NewOnLink(); err != nil {
			t.Fatal(err)
		}
		narrow(t, o.socket)
	})
	for i := range 100 {
		edit(t, host, "veth1", adds(addr(fmt.Sprintf("2001:db8:%x::1/64", i+1), 0)))
	}
	done := make(chan error)
	go func() { done <- o.Run(func(int) {}) }()
	veth := index(t, host, "veth1")
	testenv.Eventually(t, "100 prefixes on the link", func() bool { return len(o.Prefixes(veth)) == 100 })
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
