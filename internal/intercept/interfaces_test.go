// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
)

var (
	plainKinds  = []string{"udp", "connected", "tcp"}
	mappedKinds = []string{"udp-mapped", "connected-mapped", "tcp-mapped"}
)

// firewall has the host let nothing in or through but what matches, nor accept a source that it does not route.
func firewall(t *testing.T, host *testenv.NS, device, matches string) {
	t.Helper()
	host.Sysctl(t, "ipv4/conf/"+device+"/rp_filter", "1")
	host.Sysctl(t, "ipv4/conf/all/rp_filter", "1")
	t.Cleanup(func() { host.Sysctl(t, "ipv4/conf/all/rp_filter", "0") })
	rules := "table inet closed {"
	for _, chain := range []string{"forward", "input"} {
		rules += fmt.Sprintf("chain %s { type filter hook %s priority 0; policy drop; %s; };", chain, chain, matches)
	}
	rules += "}"
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules)
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("nft", "delete", "table", "inet", "closed").CombinedOutput(); err != nil {
			t.Errorf("nft: %v: %s", err, out)
		}
	})
}

func TestInterfaces(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	servers := []string{"9.9.9.9", "198.51.100.9", "10.77.0.1", "169.254.169.254", "192.0.2.53"}
	servers6 := []string{"2620:fe::fe", "2001:db8:100::53", "fd77::1", "fd4e:4644:4e55::53"}
	for name, device := range map[string]testenv.Device{
		"veth": testenv.VethDevice, "tap": testenv.TapDevice, "tun": testenv.TunDevice, "bridge port": testenv.BridgePort,
	} {
		t.Run(name, func(t *testing.T) {
			host := testenv.Self(t)
			w := testenv.NewWorld(t, host, device)
			d := open(t)
			_, index := attach(t, d, interfaceTarget(t, w.Link), everywhere())
			outside := testenv.Observe(t, w.Outside, "eth0")
			front(t, intercept.OpenInterfaces, d)

			asked := append(questions(append(plainKinds, mappedKinds...), servers), questions(plainKinds, servers6)...)
			if device != testenv.TunDevice { // a tun has no addresses of the link but its own
				asked = append(asked, questions(plainKinds, []string{linkLocal(t, w, device)})...)
			}
			all := ask(t, w.Workload, nil, asked...)
			answered(t, index, asked, all)
			for i, outcomes := range all { // both ends send what every way of IPv6 carries
				if most := outcomes[0].Most; most > 1280-40-20 || most == 0 && strings.HasPrefix(asked[i].Kind, "tcp") {
					t.Errorf("%s %s: segments of %d bytes", asked[i].Kind, asked[i].Servers[0], most)
				}
			}
			escaped(t, outside, w.Workload, nil)

			firewall(t, host, w.Link, "ct state invalid drop")
			host.Sysctl(t, "ipv4/ip_forward", "0")
			host.Sysctl(t, "ipv6/conf/all/forwarding", "0")
			answered(t, index, asked, ask(t, w.Workload, nil, asked...))
		})
	}
}

// What leaves by a device that is filtered on the way out is intercepted as well, whether it is the host's own or routed
// through it, and answers pass the host as those of the servers would.
func TestInterfacesOnTheWayOut(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	host := testenv.Self(t)
	w := testenv.NewWorld(t, host, testenv.VethDevice)
	d := open(t)
	up, err := target.ResolveInterface("up0", target.Egress, "")
	if err != nil {
		t.Fatal(err)
	}
	_, index := attach(t, d, up, everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	asked := append(questions(append(plainKinds, mappedKinds...), []string{"9.9.9.9", "198.51.100.9", "192.0.2.2"}),
		questions(plainKinds, []string{"2620:fe::fe", "2001:db8:100::53", "2001:db8:2::2"})...)
	unanswered(t, asked, ask(t, nil, nil, briefly(asked)...), unix.EAGAIN, unix.EINPROGRESS, unix.EPERM, unix.ENOBUFS)
	front(t, intercept.OpenInterfaces, d)
	firewall(t, host, "up0", "ct state established accept; iif lo accept; meta l4proto ipv6-icmp accept; iif work0 accept")
	answered(t, index, asked, ask(t, nil, nil, asked...))
	answered(t, index, asked, ask(t, w.Workload, nil, asked...))
	escaped(t, outside, nil, nil)
}

// A device without link-layer headers, as a tunnel that the host sends through.
func TestTunnelsOnTheWayOut(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.TunDevice)
	d := open(t)
	tunnel, err := target.ResolveInterface(w.Link, target.Egress, "")
	if err != nil {
		t.Fatal(err)
	}
	_, index := attach(t, d, tunnel, everywhere())
	front(t, intercept.OpenInterfaces, d)
	inside := testenv.Observe(t, w.Workload, "eth0")
	asked := questions(plainKinds, []string{"10.77.0.2", "10.77.0.53", "fd77::2", "fd77::53"})
	answered(t, index, asked, ask(t, nil, nil, asked...))
	if n := inside.Sum(t, testenv.ToPort53).Count; n != 0 {
		t.Errorf("%d queries went through the tunnel", n)
	}
}

// linkLocal is the host's own address on the workload's link.
func linkLocal(t *testing.T, w *testenv.World, device testenv.Device) string {
	t.Helper()
	name := w.Link
	if device == testenv.BridgePort {
		name = "bridge0"
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := link.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p := netip.MustParsePrefix(a.String()); p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			return p.Addr().String()
		}
	}
	t.Fatalf("%s has no address of the link: %v", name, addrs)
	return ""
}

func TestInterfaceWithoutListener(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	d := open(t)
	id, index := attach(t, d, interfaceTarget(t, w.Link), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	asked := questions(plainKinds, []string{"198.51.100.9", "2001:db8:100::53"})

	unanswered(t, asked, ask(t, w.Workload, nil, briefly(asked)...), unix.EAGAIN, unix.EINPROGRESS)
	f := front(t, intercept.OpenInterfaces, d)
	answered(t, index, asked, ask(t, w.Workload, nil, asked...))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	unanswered(t, asked, ask(t, w.Workload, nil, briefly(asked)...), unix.EAGAIN, unix.EINPROGRESS)
	escaped(t, outside, w.Workload, nil)
	c, err := d.Counters(id)
	if err != nil {
		t.Fatal(err)
	}
	if c.Drops["dns"] == 0 {
		t.Errorf("drops %v, want some for dns", c.Drops)
	}
}

// Two workloads may have the same address, and ask the same server from the same port.
func TestInterfacesAreToldApart(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	host := testenv.Self(t)
	host.Sysctl(t, "ipv4/conf/all/rp_filter", "0") // or the host answers ARP on one device only
	d := open(t)
	var workloads []*testenv.NS
	var indices []uint32
	for _, name := range []string{"work0", "work1", "work2"} {
		ns := testenv.NewNS(t)
		testenv.Veth(t, testenv.End{NS: host, Name: name, Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24"), netip.MustParsePrefix("fd77::1/64")}},
			testenv.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24"), netip.MustParsePrefix("fd77::2/64")}})
		ns.Route(t, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.77.0.1"), "eth0")
		ns.Route(t, netip.MustParsePrefix("::/0"), netip.MustParseAddr("fd77::1"), "eth0")
		_, index := attach(t, d, interfaceTarget(t, name), everywhere())
		workloads, indices = append(workloads, ns), append(indices, index)
	}
	front(t, intercept.OpenInterfaces, d)
	bound := func(addr string) netip.AddrPort { return netip.MustParseAddrPort(addr) }
	var asked []question
	for _, kind := range plainKinds {
		asked = append(asked,
			question{Kind: kind, Servers: []netip.AddrPort{port53("9.9.9.9")}, Bind: bound("10.77.0.2:5000")},
			question{Kind: kind, Servers: []netip.AddrPort{port53("2620:fe::fe")}, Bind: bound("[fd77::2]:5000")})
	}
	// Each has asked, and holds its sockets, before the next one does.
	var all [3][][]outcome
	for i := range asked {
		asked[i].Servers = append(asked[i].Servers, asked[i].Servers[0])
		asked[i].Wait = true
		all[0] = askAround(t, workloads[0], nil, func() {
			all[1] = askAround(t, workloads[1], nil, func() {
				one := asked[i]
				one.Servers, one.Wait = one.Servers[:1], false
				all[2] = ask(t, workloads[2], nil, one)
			}, asked[i])
		}, asked[i])
		for n := range all {
			for _, o := range all[n][0] {
				if o.Answer.Index != indices[n] {
					t.Errorf("%s %s: workload %d: %+v, want index %d", asked[i].Kind, asked[i].Servers[0], n, o, indices[n])
				}
			}
		}
	}
}

// A client that never asks twice from one port has far more flows than there is
// room for; the oldest go, and none that waits for an answer.
func TestManyQueries(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	d := open(t)
	_, index := attach(t, d, interfaceTarget(t, w.Link), everywhere())
	front(t, intercept.OpenInterfaces, d)
	many := question{Kind: "udp", Servers: []netip.AddrPort{port53("9.9.9.9")}, Repeat: 5000}
	connection := question{Kind: "tcp", Servers: []netip.AddrPort{port53("9.9.9.9"), port53("9.9.9.9")}, Wait: true}
	all := askAround(t, w.Workload, nil, func() {
		answered(t, index, []question{many}, ask(t, w.Workload, nil, many))
	}, connection)
	for _, o := range all[0] {
		if o.Answer.Index != index {
			t.Errorf("a connection beside them: %+v", o)
		}
	}
}
