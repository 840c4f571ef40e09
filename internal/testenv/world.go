// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"net/netip"
)

// World is a host that routes between a workload and the outside:
//
//	Workload eth0 ── Link  Host  up0 ── eth0 Outside
//	10.77.0.2                                198.51.100.0/24 203.0.113.0/24
//	fd77::2                                  169.254.169.254
//	                                         2001:db8:100::/48 2001:db8:200::/48
//	                                         9.9.9.9 2620:fe::fe
//
// Every address of the outside networks answers. The host's default route leads
// outside.
type World struct {
	Host, Workload, Outside *NS
	// Link is the workload's device in Host, the one to attach.
	Link string
	// Addr4 and Addr6 are the workload's addresses.
	Addr4, Addr6 netip.Addr
}

// Device says what connects a World's workload to its host.
type Device uint8

// The devices of a World.
const (
	VethDevice Device = iota
	TapDevice
	TunDevice
	BridgePort // a veth in a bridge that has the host's addresses
)

// Addresses of a public resolver. What is to ask Netfence must never ask them.
const (
	ForeignResolver4 = "9.9.9.9"
	ForeignResolver6 = "2620:fe::fe"
)

// What the outside of a World owns.
var outside = []netip.Prefix{
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("169.254.169.254/32"),
	netip.MustParsePrefix("2001:db8:100::/48"),
	netip.MustParsePrefix("2001:db8:200::/48"),
	// Resolvers that everyone knows, so that it is seen who asks them.
	netip.MustParsePrefix(ForeignResolver4 + "/32"),
	netip.MustParsePrefix(ForeignResolver6 + "/128"),
}

// NewWorld builds a World around host, which may be Self for tests that run the
// daemon in their own process.
func NewWorld(t TB, host *NS, device Device) *World {
	t.Helper()
	w := &World{Host: host, Workload: NewNS(t), Outside: NewNS(t), Link: "work0",
		Addr4: netip.MustParseAddr("10.77.0.2"), Addr6: netip.MustParseAddr("fd77::2")}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		host.Sysctl(t, key, "1")
	}

	uplink := func(last string) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix("192.0.2." + last + "/24"), netip.MustParsePrefix("2001:db8:2::" + last + "/64")}
	}
	Veth(t, End{host, "up0", uplink("1")}, End{w.Outside, "eth0", uplink("2")})
	for i, family := range []string{"0.0.0.0/0", "::/0"} {
		host.Route(t, netip.MustParsePrefix(family), uplink("2")[i].Addr(), "up0")
		w.Outside.Route(t, netip.MustParsePrefix(family), uplink("1")[i].Addr(), "eth0")
	}
	for _, p := range outside {
		w.Outside.Own(t, p)
	}

	gateway := []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd77::1/64")}
	here := End{host, w.Link, gateway}
	there := End{w.Workload, "eth0", []netip.Prefix{netip.PrefixFrom(w.Addr4, 24), netip.PrefixFrom(w.Addr6, 64)}}
	switch device {
	case VethDevice:
		Veth(t, here, there)
	case TapDevice:
		Tap(t, here, there)
	case TunDevice:
		Tun(t, here, there)
	case BridgePort:
		here.Addrs = nil
		Veth(t, here, there)
		Bridge(t, End{host, "bridge0", gateway}, here.Name)
	}
	w.Workload.Route(t, netip.MustParsePrefix("0.0.0.0/0"), gateway[0].Addr(), "eth0")
	w.Workload.Route(t, netip.MustParsePrefix("::/0"), gateway[1].Addr(), "eth0")
	return w
}
