// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

const listenerPort = 253

// askServers has one socket ask the servers that follow its kind: udp, connected, tcp. It says where the socket is, and
// keeps it until stdin ends.
var askServers = testenv.NewFunc("ask-servers", func(args []string) error {
	kind, family, typ := args[0], unix.AF_INET, unix.SOCK_DGRAM
	var servers []unix.Sockaddr
	for _, arg := range args[1:] {
		server := netip.MustParseAddrPort(arg)
		if server.Addr().Is4() {
			servers = append(servers, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()})
			continue
		}
		family = unix.AF_INET6
		servers = append(servers, &unix.SockaddrInet6{Port: int(server.Port()), Addr: server.Addr().As16()})
	}
	if kind == "tcp" {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, server := range servers {
		if kind == "udp" {
			// Nobody listens at UDP, and the next call may be told so.
			if err := unix.Sendto(fd, []byte("question"), 0, server); err != nil && err != unix.ECONNREFUSED {
				return fmt.Errorf("sendto: %w", err)
			}
			continue
		}
		if err := unix.Connect(fd, server); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		fmt.Println(at.Port)
	case *unix.SockaddrInet6:
		fmt.Println(at.Port)
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
})

// listened is a namespace in which sockets of cgroups are turned to listenerPort.
type listened struct {
	*testenv.NS
	id int
}

// listenTo prepares a namespace as package intercept does.
func listenTo(t *testing.T, d *Datapath, ns *testenv.NS, own bool) listened {
	t.Helper()
	l := listened{ns, OwnNetns}
	var cookie uint64
	var err error
	ns.Do(func() {
		if cookie, err = target.NetnsCookie(); err != nil {
			return
		}
		var lo netlink.Link
		if lo, err = netlink.LinkByName("lo"); err == nil {
			err = netlink.RouteReplace(&netlink.Route{
				LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
				Dst: &net.IPNet{IP: dnsRange6.Addr().AsSlice(), Mask: net.CIDRMask(dnsRange6.Bits(), 128)},
			})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	ns.Listen(t, "tcp4", fmt.Sprintf("0.0.0.0:%d", listenerPort))
	ns.Listen(t, "tcp6", fmt.Sprintf("[::]:%d", listenerPort))
	if own {
		if err := d.ListenCgroups(DNSListener{Netns: cookie, Port: listenerPort, IPv6: true}); err != nil {
			t.Fatal(err)
		}
		return l
	}
	closer, err := d.ListenIn(cookie)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closer.Close(); err != nil {
			t.Error(err)
		}
	})
	file, err := os.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := netlink.SetNetNsIdByFd(int(file.Fd()), -1); err != nil {
		t.Fatal(err)
	}
	if l.id, err = netlink.GetNetNsIdByFd(int(file.Fd())); err != nil || l.id < 0 {
		t.Fatalf("id of a namespace: %d, %v", l.id, err)
	}
	return l
}

// asks returns the port of a socket that has asked, and what closes it.
func (l listened) asks(t *testing.T, cg *testenv.Cgroup, kind string, servers ...string) (port uint16, closed func()) {
	t.Helper()
	cmd := askServers.Command(append([]string{kind}, servers...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	testenv.Start(t, cmd, l.NS, cg)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s %v: %v", kind, servers, err)
	}
	if _, err := fmt.Sscan(line, &port); err != nil {
		t.Fatal(err)
	}
	return port, func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// What a cgroup's socket has asked is found by the addresses of its query, for whoever it belongs to and nobody else.
func TestOriginalServers(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	cg := testenv.NewCgroup(t)
	tg, err := target.ResolveCgroup(cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, pinDir(t))
	id := attach(t, d, tg)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist})
	index, _ := d.Index(id)
	chain := d.Chain(index)
	if len(chain) != 1 {
		t.Fatalf("chain of %d: %v", index, chain)
	}
	place := func(server string, slot uint32) (client, asked netip.Addr) {
		low := slot<<uint32(bpfLimitDNS_INDEX_BITS) | index
		if netip.MustParseAddrPort(server).Addr().Is4() {
			return netip.MustParseAddr("127.0.0.1"), below(dnsRange4, low)
		}
		return netip.IPv6Loopback(), below(dnsRange6, low)
	}
	ns := listenTo(t, d, testenv.NewNS(t), false)
	for where, in := range map[string]listened{"own": listenTo(t, d, testenv.Self(t), true), "other": ns} {
		for _, kind := range []string{"udp", "connected", "tcp"} {
			for _, servers := range [][]string{
				{"9.9.9.9:53"}, {"[2620:fe::fe]:53"},
				{"9.9.9.9:53", "127.0.0.53:53", "8.8.8.8:53"}, {"[2620:fe::fe]:53", "[::1]:53"},
			} {
				name := fmt.Sprintf("%s %s %s", where, kind, strings.Join(servers, " "))
				if kind == "tcp" {
					servers = servers[len(servers)-1:]
				}
				port, closed := in.asks(t, cg, kind, servers...)
				for slot, server := range servers {
					client, asked := place(server, uint32(slot)+1)
					q := CgroupQuery{
						Member: chain[0], TCP: kind == "tcp", Netns: in.id,
						Client: netip.AddrPortFrom(client, port), Asked: netip.AddrPortFrom(asked, listenerPort),
					}
					found := func(what string, change func(*CgroupQuery), want netip.AddrPort) {
						t.Helper()
						q := q
						change(&q)
						if got, err := d.Original(q); err != nil || got != want {
							t.Errorf("%s, slot %d, %s: %v (%v), want %v", name, slot+1, what, got, err, want)
						}
					}
					current := kind != "connected" || slot == len(servers)-1
					if current { // a socket that is connected takes no answers of those before
						found("itself", func(*CgroupQuery) {}, netip.MustParseAddrPort(server))
					}
					var nobody netip.AddrPort
					found("another port", func(q *CgroupQuery) { q.Client = netip.AddrPortFrom(client, port+1) }, nobody)
					found("the other protocol", func(q *CgroupQuery) { q.TCP = !q.TCP }, nobody)
					found("an earlier attachment at the index", func(q *CgroupQuery) { q.Member.incarnation++ }, nobody)
					found("another listener", func(q *CgroupQuery) { q.Asked = netip.AddrPortFrom(asked, listenerPort+1) }, nobody)
					_, unused := place(server, 8)
					found("a slot that it has not used", func(q *CgroupQuery) { q.Asked = netip.AddrPortFrom(unused, listenerPort) }, nobody)
					_, none := place(server, 0)
					found("no slot", func(q *CgroupQuery) { q.Asked = netip.AddrPortFrom(none, listenerPort) }, nobody)
					others := ns.id
					if in.id == ns.id {
						others = OwnNetns
					}
					found("another namespace", func(q *CgroupQuery) { q.Netns = others }, nobody)
					found("no namespace", func(q *CgroupQuery) { q.Netns = 1 << 20 }, nobody)
				}
				closed()
				if kind == "tcp" {
					continue // nobody has taken the connection, and it lingers
				}
				client, asked := place(servers[0], 1)
				gone := CgroupQuery{Member: chain[0], Netns: in.id, Client: netip.AddrPortFrom(client, port), Asked: netip.AddrPortFrom(asked, listenerPort)}
				if got, err := d.Original(gone); err != nil || got.IsValid() {
					t.Errorf("%s, closed: %v (%v), want nobody", name, got, err)
				}
			}
		}
	}
	t.Run("more servers than slots", func(t *testing.T) {
		var servers []string
		for i := range 10 {
			servers = append(servers, fmt.Sprintf("192.0.2.%d:53", i))
		}
		port, closed := ns.asks(t, cg, "udp", servers...)
		defer closed()
		for slot, want := range []int{8, 9, 2, 3, 4, 5, 6, 7} {
			client, asked := place(servers[0], uint32(slot)+1)
			q := CgroupQuery{Member: chain[0], Netns: ns.id, Client: netip.AddrPortFrom(client, port), Asked: netip.AddrPortFrom(asked, listenerPort)}
			if got, err := d.Original(q); err != nil || got.String() != servers[want] {
				t.Errorf("slot %d: %v (%v), want %s", slot+1, got, err, servers[want])
			}
		}
	})
}

// A datapath for cgroups only has the program too, though it has none of its kind that interfaces get.
func TestOriginalForCgroupsOnly(t *testing.T) {
	d := openWith(t, Config{Dir: pinDir(t), Only: Cgroups, MaxAttachments: 1})
	q := CgroupQuery{Client: netip.MustParseAddrPort("127.0.0.1:4000"), Asked: netip.MustParseAddrPort("127.136.0.1:253"), Netns: OwnNetns}
	if server, err := d.Original(q); err != nil || server.IsValid() {
		t.Errorf("nobody's query: %v, %v", server, err)
	}
}

func BenchmarkOriginal(b *testing.B) {
	d := open(b, pinDir(b))
	q := CgroupQuery{Client: netip.MustParseAddrPort("127.0.0.1:4000"), Asked: netip.MustParseAddrPort("127.136.0.1:253"), Netns: OwnNetns}
	for b.Loop() {
		if _, err := d.Original(q); err != nil {
			b.Fatal(err)
		}
	}
}
