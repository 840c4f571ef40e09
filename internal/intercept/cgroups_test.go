// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/dnsproxy"
	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func TestCgroups(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	d := open(t)
	id, index := attach(t, d, cgroupTarget(t, cg), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	asked := append(questions(append(plainKinds, mappedKinds...), []string{"9.9.9.9", "198.51.100.9", "10.77.0.2", "127.0.0.53", "0.0.0.0"}),
		questions(plainKinds, []string{"2620:fe::fe", "2001:db8:100::53", "::1"})...)
	unanswered(t, asked, ask(t, nil, cg, asked...), unix.EPERM)

	front(t, intercept.OpenCgroups, d)
	for _, nameserver := range d.Nameservers(id) {
		asked = append(asked, questions(plainKinds, []string{nameserver.String()})...)
	}
	own := netip.MustParseAddrPort(d.DNSAddress(id))
	for _, kind := range plainKinds {
		asked = append(asked, question{Kind: kind, Servers: []netip.AddrPort{own}})
	}
	answered(t, index, asked, ask(t, nil, cg, asked...))

	t.Run("one socket asks several servers", func(t *testing.T) {
		var servers []netip.AddrPort
		for _, s := range []string{"9.9.9.9", "8.8.8.8", "127.0.0.53", "9.9.9.9", "1.1.1.1", "1.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "9.9.9.9"} {
			servers = append(servers, port53(s))
		}
		asked := []question{{Kind: "udp", Servers: servers}, {Kind: "connected", Servers: servers}, {Kind: "udp-mapped", Servers: servers}}
		answered(t, index, asked, ask(t, nil, cg, asked...))
	})
	// A zone is kept by the kernel as the way that a datagram takes, which does not lead to the listener.
	t.Run("a resolver of the link", func(t *testing.T) {
		asked := questions(plainKinds, []string{"fe80::1%up0"})
		all := ask(t, nil, cg, asked...)
		answered(t, index, asked[1:], all[1:])
		unanswered(t, asked[:1], all[:1], unix.EPERM)
	})
	t.Run("a socket with an address of its own, or a device", func(t *testing.T) {
		var asked []question
		for _, kind := range plainKinds {
			asked = append(asked,
				question{Kind: kind, Servers: []netip.AddrPort{port53("9.9.9.9")}, Bind: netip.MustParseAddrPort("192.0.2.1:0")},
				question{Kind: kind, Servers: []netip.AddrPort{port53("2620:fe::fe")}, Bind: netip.MustParseAddrPort("[2001:db8:2::1]:0")})
		}
		answered(t, index, asked, ask(t, nil, cg, asked...))
		for i := range asked {
			asked[i].Device = "up0"
		}
		unanswered(t, asked, ask(t, nil, cg, briefly(asked)...), unix.EPERM, unix.EINPROGRESS)
	})
	t.Run("the host asks on its behalf", func(t *testing.T) {
		asked := []question{{Kind: "udp", Servers: []netip.AddrPort{own}}, {Kind: "tcp", Servers: []netip.AddrPort{own}}}
		answered(t, index, asked, ask(t, nil, nil, asked...))
	})
	escaped(t, outside, nil, cg)
}

func TestCgroupCannotTakeTheListenersPlace(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	cg := testenv.NewCgroup(t)
	d := open(t)
	id, _ := attach(t, d, cgroupTarget(t, cg), everywhere())
	front(t, intercept.OpenCgroups, d)
	port := netip.MustParseAddrPort(d.DNSAddress(id)).Port()
	to := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}
	to6 := []netip.AddrPort{netip.MustParseAddrPort("[::1]:9")}
	var asked []question
	for _, at := range []string{"127.0.0.1", "10.1.2.3", "0.0.0.0"} {
		asked = append(asked, question{Kind: "udp", Servers: to, Bind: netip.AddrPortFrom(netip.MustParseAddr(at), port)})
	}
	for _, at := range []string{"127.128.0.1", "127.255.255.254", "127.136.0.1"} {
		asked = append(asked, question{Kind: "tcp", Servers: to, Bind: netip.AddrPortFrom(netip.MustParseAddr(at), 9999)},
			question{Kind: "udp-mapped", Servers: to, Bind: netip.AddrPortFrom(netip.MustParseAddr(at), 9999)})
	}
	for _, at := range []string{"fd4e:4644:4e53::1", "fd4e:4644:4e53:0:1::"} {
		asked = append(asked, question{Kind: "udp", Servers: to6, Bind: netip.AddrPortFrom(netip.MustParseAddr(at), 9999)})
	}
	for i, outcomes := range ask(t, nil, cg, asked...) {
		if o := outcomes[0]; o.Call != "bind: operation not permitted" {
			t.Errorf("bind to %s: %+v", asked[i].Bind, o)
		}
	}
}

func TestCgroupInAnotherNamespace(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	d := open(t)
	attach(t, d, cgroupTarget(t, cg), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	front(t, intercept.OpenCgroups, d)
	asked := append(questions(plainKinds, []string{"198.51.100.9", "2001:db8:100::53"}), questions(mappedKinds, []string{"198.51.100.9"})...)
	unanswered(t, asked, ask(t, w.Workload, cg, asked...), unix.EPERM)
	escaped(t, outside, w.Workload, cg)
}

// Packets that no socket's connect or sendmsg has seen.
func TestCgroupRawSockets(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	cg, other := testenv.NewCgroup(t), testenv.NewCgroup(t)
	d := open(t)
	id, _ := attach(t, d, cgroupTarget(t, cg), everywhere())
	otherID, _ := attach(t, d, cgroupTarget(t, other), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	front(t, intercept.OpenCgroups, d)
	for to, reason := range map[netip.AddrPort]string{
		port53("198.51.100.9"):                         "dns",
		netip.MustParseAddrPort(d.DNSAddress(id)):      "protected",
		netip.MustParseAddrPort(d.DNSAddress(otherID)): "protected",
	} {
		before, err := d.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		cmd := rawSender.Command(to.String())
		testenv.Start(t, cmd, nil, cg)
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		after, err := d.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		if n := after.Drops[reason] - before.Drops[reason]; n != 1 {
			t.Errorf("raw packet to %s: %d dropped as %s, want 1", to, n, reason)
		}
	}
	escaped(t, outside, nil, cg)
}

// rawSender sends a UDP datagram that it has made itself.
var rawSender = testenv.NewFunc("raw-sender", func(args []string) error {
	to, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	datagram := binary.BigEndian.AppendUint16(nil, 4000)
	datagram = binary.BigEndian.AppendUint16(datagram, to.Port())
	datagram = append(datagram, 0, 16, 0, 0)
	datagram = append(datagram, "question"...)
	err = unix.Sendto(fd, datagram, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	if errors.Is(err, unix.EPERM) {
		return nil // dropped, and told so
	}
	return err
})

// In block-all queries still come to the listener, which refuses them.
func TestBlockAllIsAnswered(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	d := open(t)
	_, cgroup := attach(t, d, cgroupTarget(t, cg), policy.BlockAll())
	_, device := attach(t, d, interfaceTarget(t, w.Link), policy.BlockAll())
	front(t, intercept.OpenCgroups, d)
	front(t, intercept.OpenInterfaces, d)
	asked := questions(plainKinds, []string{"198.51.100.9", "2001:db8:100::53"})
	answered(t, cgroup, asked, ask(t, nil, cg, asked...))
	// Without neighbour discovery nothing of IPv6 finds the gateway, and ARP is dropped as well.
	gateway, err := net.InterfaceByName(w.Link)
	if err != nil {
		t.Fatal(err)
	}
	w.Workload.Do(func() {
		eth0, err := net.InterfaceByName("eth0")
		for _, address := range []string{"10.77.0.1", "fd77::1"} {
			err = errors.Join(err, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: eth0.Index, IP: net.ParseIP(address), HardwareAddr: gateway.HardwareAddr, State: netlink.NUD_PERMANENT,
			}))
		}
		if err != nil {
			t.Errorf("neighbours: %v", err)
		}
	})
	answered(t, device, asked, ask(t, w.Workload, nil, asked...))
}

// What is no query is not heard, and does not end the listening.
func TestDatagramsThatAreNoQueries(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	d := open(t)
	id, index := attach(t, d, cgroupTarget(t, testenv.NewCgroup(t)), everywhere())
	front(t, intercept.OpenCgroups, d)
	own := netip.MustParseAddrPort(d.DNSAddress(id))
	nobody, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), own.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	conn, err := net.Dial("udp", own.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, send := range []struct {
		conn net.Conn
		text string
	}{{nobody, "nobody's"}, {conn, ""}, {conn, strings.Repeat("long", dnsproxy.MaxQuery/4+1)}, {conn, "question"}} {
		if _, err := send.conn.Write([]byte(send.text)); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 512)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	var got answer
	if err := json.Unmarshal(b[:n], &got); err != nil {
		t.Fatal(err)
	}
	if got != (answer{Index: index, Text: "question", Server: own, Cgroup: true}) { // nobody turned it there
		t.Errorf("the first answer is %+v", got)
	}
}

func TestHostWithoutIPv6(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	host := testenv.Self(t)
	host.Sysctl(t, "ipv6/conf/lo/disable_ipv6", "1")
	t.Cleanup(func() { host.Sysctl(t, "ipv6/conf/lo/disable_ipv6", "0") })
	cg := testenv.NewCgroup(t)
	d := open(t)
	id, index := attach(t, d, cgroupTarget(t, cg), everywhere())
	front(t, intercept.OpenCgroups, d)
	if servers := d.Nameservers(id); len(servers) != 1 || !servers[0].Is4() {
		t.Errorf("name servers %v, want one of IPv4", servers)
	}
	asked := questions(append(plainKinds, mappedKinds...), []string{"127.0.0.53"})
	answered(t, index, asked, ask(t, nil, cg, asked...))
	asked = questions(plainKinds, []string{"2620:fe::fe"})
	for i, outcomes := range ask(t, nil, cg, asked...) {
		if outcomes[0].Errno == 0 {
			t.Errorf("%s: %+v", asked[i].Kind, outcomes[0])
		}
	}
}
