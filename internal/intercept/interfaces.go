// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	hostPrefix = "nfdns-"
	inside     = "dns0" // the other end
	dnsPort    = 53
	table      = 100
)

// Nobody sees these addresses: they are next hops for a device without ARP.
var (
	inside4  = netip.MustParsePrefix("192.0.0.8/32")
	nextHop4 = netip.MustParseAddr("192.0.0.9")
	nextHop6 = netip.MustParseAddr("fe80::9")
)

// insideMAC is where the programs of interfaces that are filtered on the way out
// send queries; see bpf/dns_interface.h.
var insideMAC = net.HardwareAddr("\x02NFDNS")

// OpenInterfaces opens the sockets for the queries of interfaces, in a network
// namespace of their own where every address is local. The namespace lives by
// its sockets, so that it ends with the process, and the veth ends with it.
func OpenInterfaces(k Kernel) (*Front, error) {
	f := &Front{}
	if err := f.openInterfaces(k); err != nil {
		return nil, errors.Join(fmt.Errorf("DNS for interfaces: %w", err), f.Close())
	}
	return f, nil
}

func (f *Front) openInterfaces(k Kernel) error {
	ns, err := newNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	veth, err := addVeth(ns)
	if err != nil {
		return err
	}
	f.add(closerFunc(func() error { return removeLink(veth) }))
	err = inNamespace(ns, func() error {
		ifindex, err := furnish()
		if err != nil {
			return err
		}
		where := &place{ifindex: uint32(ifindex)}
		_, err = where.open(f, dnsPort)
		return err
	})
	if err != nil {
		return err
	}
	handingOver, err := k.ListenInterfaces(veth.Attrs().Index)
	if err != nil {
		return err
	}
	f.add(handingOver)
	return nil
}

// addVeth makes the pair, its other end in ns. A killed process's may still be
// there for an instant, so each has a name of its own.
func addVeth(ns *os.File) (netlink.Link, error) {
	var unique [4]byte
	_, _ = rand.Read(unique[:]) // never fails
	attrs := netlink.NewLinkAttrs()
	attrs.Name = hostPrefix + hex.EncodeToString(unique[:])
	veth := netlink.NewVeth(attrs)
	veth.PeerName = inside
	veth.PeerHardwareAddr = insideMAC
	veth.PeerNamespace = netlink.NsFd(int(ns.Fd()))
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add veth: %w", err)
	}
	link, err := netlink.LinkByName(attrs.Name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("veth %s: %w", attrs.Name, err), netlink.LinkDel(veth))
	}
	// The host has nothing to say there.
	err = errors.Join(sysctl("ipv6/conf/"+attrs.Name+"/disable_ipv6", "1"), netlink.LinkSetARPOff(link))
	if err == nil {
		// The end that comes up last sends at once; the other waits for its carrier to
		// be noticed, for up to a second (net/core/link_watch.c). This one never sends.
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("veth %s: %w", attrs.Name, err), removeLink(link))
	}
	return link, nil
}

func removeLink(link netlink.Link) error {
	err := netlink.LinkDel(link)
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// furnish makes whatever comes in by the veth local, and has the answers leave
// by it. It is called in the namespace and returns the device's index there.
func furnish() (int, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("lo: %w", err)
	}
	dev, err := netlink.LinkByName(inside)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", inside, err)
	}
	v6, err := haveIPv6()
	if err != nil {
		return 0, err
	}
	for _, step := range []func() error{
		func() error { return netlink.LinkSetUp(lo) },
		// The way back to a client leads by no route that a check of sources would accept.
		func() error { return sysctl("ipv4/conf/all/rp_filter", "0") },
		func() error { return sysctl("ipv4/conf/"+inside+"/rp_filter", "0") },
		func() error { return sysctl("ipv6/conf/"+inside+"/accept_ra", "0") },
		func() error { return sysctl("ipv6/conf/"+inside+"/accept_dad", "0") },
		func() error { return netlink.LinkSetARPOff(dev) },
		func() error { return netlink.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(inside4)}) },
		func() error { return netlink.LinkSetUp(dev) },
		func() error { return lead(dev, lo, netlink.FAMILY_V4, nextHop4) },
		func() error {
			if !v6 {
				return nil
			}
			// Addresses of the link are local only to the device that they come in by.
			return lead(dev, dev, netlink.FAMILY_V6, nextHop6)
		},
	} {
		if err := step(); err != nil {
			return 0, fmt.Errorf("set up %s: %w", inside, err)
		}
	}
	return dev.Attrs().Index, nil
}

// lead routes one family: in to this host, out to the next hop.
func lead(dev, local netlink.Link, family int, nextHop netip.Addr) error {
	everything := ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	if family == netlink.FAMILY_V6 {
		everything = ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	}
	rule := netlink.NewRule()
	rule.Family, rule.IifName, rule.Table, rule.Priority = family, inside, table, 10
	in := &netlink.Route{
		LinkIndex: local.Attrs().Index, Dst: everything, Table: table,
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	out := &netlink.Route{
		LinkIndex: dev.Attrs().Index, Dst: everything, Gw: nextHop.AsSlice(),
		Flags: int(netlink.FLAG_ONLINK),
	}
	for _, step := range []func() error{
		func() error { return netlink.RouteAdd(in) },
		func() error { return netlink.RuleAdd(rule) },
		func() error { return netlink.RouteAdd(out) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("routes: %w", err)
		}
	}
	return nil
}

// sysctl writes below /proc/sys/net, which shows the namespace of the calling
// thread. A kernel without IPv6 has none of its files.
func sysctl(key, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
