// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/testenv"
)

func addLink(t *testing.T, link netlink.Link) {
	t.Helper()
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatalf("add %s: %v", link.Attrs().Name, err)
	}
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

func defaultRoute(t *testing.T, ns *testenv.NS, prefix, device string) {
	t.Helper()
	ns.Route(t, netip.MustParsePrefix(prefix), netip.Addr{}, device)
}

func TestDirection(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, guest := testenv.NewNS(t), testenv.NewNS(t)
	for _, name := range []string{"veth1", "up4", "up6", "half", "table"} {
		testenv.Veth(t, testenv.End{NS: host, Name: name}, testenv.End{NS: guest, Name: name})
	}
	testenv.Tap(t, testenv.End{NS: host, Name: "tap1"}, testenv.End{NS: guest, Name: "tap1"})
	testenv.Tun(t, testenv.End{NS: host, Name: "tun1"}, testenv.End{NS: guest, Name: "tun1"})
	testenv.Bridge(t, testenv.End{NS: host, Name: "br1"})
	defaultRoute(t, host, "0.0.0.0/0", "up4")
	defaultRoute(t, host, "::/0", "up6")
	defaultRoute(t, host, "128.0.0.0/1", "half")

	host.Do(func() {
		addLink(t, &netlink.GenericLink{LinkAttrs: named("ifb1"), LinkType: "ifb"})
		table, err := netlink.LinkByName("table")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: table.Attrs().Index, Table: 51820, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}); err != nil {
			t.Fatal(err)
		}
		addLink(t, &netlink.Macvtap{Macvlan: netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "macvtap1", ParentIndex: table.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE,
		}})
		cookie, err := NetnsCookie()
		if err != nil {
			t.Fatal(err)
		}

		for name, want := range map[string]Target{
			"veth1":    {LinkKind: "veth", Direction: Ingress},
			"tap1":     {LinkKind: "tun", Direction: Ingress},
			"tun1":     {LinkKind: "tun", Direction: Ingress, Headerless: true},
			"br1":      {LinkKind: "bridge", Direction: Ingress},
			"macvtap1": {LinkKind: "macvtap", Direction: Egress},
		} {
			got, err := ResolveInterface(name, DirectionAuto, "")
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if got.Type != Interface || got.Name != name || got.Direction != want.Direction || got.NetnsCookie != cookie ||
				got.LinkKind != want.LinkKind || got.Headerless != want.Headerless || got.Ifindex == 0 || (got.MAC == "") != want.Headerless {
				t.Errorf("%s: %+v", name, got)
			}
		}
		for name, cause := range map[string]string{
			"up4": "default route", "up6": "default route", "half": "default route", "table": "default route",
			"ifb1": "ifb",
		} {
			_, err := ResolveInterface(name, DirectionAuto, "")
			var invalid *InvalidError
			if !errors.As(err, &invalid) || !strings.Contains(err.Error(), "--direction") || !strings.Contains(err.Error(), cause) {
				t.Errorf("%s: %v, want to be asked for --direction because of %q", name, err, cause)
			}
			for _, want := range []Direction{Ingress, Egress} {
				if got, err := ResolveInterface(name, want, ""); err != nil || got.Direction != want {
					t.Errorf("%s, %s by request: %s, %v", name, want, got.Direction, err)
				}
			}
		}
		for _, want := range []Direction{DirectionAuto, Ingress, Egress} {
			var invalid *InvalidError
			if _, err := ResolveInterface("lo", want, ""); !errors.As(err, &invalid) {
				t.Errorf("lo, %s: %v, want a refusal", want, err)
			}
		}
	})
}

// The kernel gives a device no rtnl kind and names what is behind it. A suite in a
// network namespace of its own has none to resolve.
func TestPhysicalDeviceIsEgress(t *testing.T) {
	card := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0", ParentDev: "virtio2"}}
	if got, err := findDirection(card); err != nil || got != Egress {
		t.Errorf("network card: %s, %v", got, err)
	}
	if got, err := findDirection(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "odd0"}}); err == nil {
		t.Errorf("device with nothing behind it: %s, want to be asked", got)
	}
}

func TestNetkitEnds(t *testing.T) {
	if got, err := findDirection(&netlink.Netkit{LinkAttrs: netlink.LinkAttrs{Name: "nk0"}}); err == nil {
		t.Errorf("the workload's end: %s, want to be asked", got)
	}
}

func TestInterfaceNotFound(t *testing.T) {
	testenv.Require(t, testenv.Root)
	for _, name := range []string{"nowhere0", "an-alternative-name-that-is-long"} {
		_, err := ResolveInterface(name, DirectionAuto, "")
		var missing *NotFoundError
		if !errors.As(err, &missing) || err.Error() != "interface "+name+": no such interface" {
			t.Errorf("%v", err)
		}
	}
	for _, name := range []string{"", ".", "a/b", "a b", "a\x00", strings.Repeat("x", 128)} {
		_, err := ResolveInterface(name, DirectionAuto, "")
		var invalid *InvalidError
		if !errors.As(err, &invalid) {
			t.Errorf("name %q: %v, want InvalidError", name, err)
		}
	}
}

func TestAlternativeName(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, guest := testenv.NewNS(t), testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: host, Name: "veth1"}, testenv.End{NS: guest, Name: "eth0"})
	host.Do(func() {
		link, err := netlink.LinkByName("veth1")
		if err != nil {
			t.Fatal(err)
		}
		const long = "container-of-tenant-acme-1"
		if err := netlink.LinkAddAltName(link, long); err != nil {
			t.Fatal(err)
		}
		if got, err := ResolveInterface(long, DirectionAuto, ""); err != nil || got.Name != "veth1" {
			t.Errorf("%s: %q, %v", long, got.Name, err)
		}
	})
}

func TestUnsupportedLinkLayer(t *testing.T) {
	for layer, ok := range map[string]bool{"ether": true, "none": true, "gre": false, "ieee802.11": false, "": false} {
		err := checkLink(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "odd0", EncapType: layer}})
		if (err == nil) != ok {
			t.Errorf("link layer %q: %v", layer, err)
		}
	}
}

func TestOtherNetns(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, guest, third := testenv.NewNS(t), testenv.NewNS(t), testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: host, Name: "veth1"}, testenv.End{NS: guest, Name: "eth0"})
	testenv.Veth(t, testenv.End{NS: third, Name: "far0"}, testenv.End{NS: guest, Name: "eth1"})
	host.Do(func() {
		_, err := ResolveInterface("eth0", DirectionAuto, guest.Path())
		var other *OtherNetnsError
		if !errors.As(err, &other) || other.HostEnd != "veth1" ||
			err.Error() != "interface eth0: in network namespace "+guest.Path()+", not the daemon's (attach its host-side end veth1)" {
			t.Errorf("peer of ours: %v", err)
		}
		_, err = ResolveInterface("eth1", DirectionAuto, guest.Path())
		if !errors.As(err, &other) || other.HostEnd != "" {
			t.Errorf("peer elsewhere: %v", err)
		}
		var missing *NotFoundError
		if _, err = ResolveInterface("eth7", DirectionAuto, guest.Path()); !errors.As(err, &missing) {
			t.Errorf("no such interface there: %v", err)
		}
		for _, ref := range []string{"no-such-name", "/run/netns/no-such-name"} {
			if _, err = ResolveInterface("veth1", DirectionAuto, ref); !errors.As(err, &missing) {
				t.Errorf("namespace %s: %v", ref, err)
			}
		}
		var invalid *InvalidError
		for _, ref := range []string{"/proc/self/ns/mnt", "/etc/hostname", "/proc"} {
			if _, err = ResolveInterface("veth1", DirectionAuto, ref); !errors.As(err, &invalid) {
				t.Errorf("namespace %s: %v", ref, err)
			}
		}
		if _, err = ResolveInterface("veth1", DirectionAuto, host.Path()); err != nil {
			t.Errorf("our own: %v", err)
		}
	})
}

func TestCurrentInterface(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, guest := testenv.NewNS(t), testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: host, Name: "veth1"}, testenv.End{NS: guest, Name: "eth0"})
	host.Do(func() {
		was, err := ResolveInterface("veth1", Egress, "")
		if err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName("veth1")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetName(link, "veth2"); err != nil {
			t.Fatal(err)
		}
		now, err := Current(was)
		if err != nil || now.Name != "veth2" || now.Direction != Egress || !now.Same(was) {
			t.Errorf("after a rename: %+v, %v", now, err)
		}

		guest.Do(func() {
			var missing *NotFoundError
			if _, err := Current(was); !errors.As(err, &missing) {
				t.Errorf("from another namespace: %v", err)
			}
		})

		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		addLink(t, &netlink.Bridge{LinkAttrs: named("veth2")})
		var missing *NotFoundError
		if _, err := Current(was); !errors.As(err, &missing) {
			t.Errorf("after a new one took its name: %v", err)
		}
		attrs := named("thief0")
		attrs.Index = was.Ifindex
		addLink(t, &netlink.Bridge{LinkAttrs: attrs})
		if _, err := Current(was); !errors.As(err, &missing) {
			t.Errorf("after another kind took its index: %v", err)
		}
	})
}
