// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// What a filter of this kind does not see, row by row of docs/threat-model.md. A
// test that fails here is good news, for that page.

// A SYN-ACK made from a SYN cookie belongs to no socket, hence to no cgroup.
func TestLimitSYNCookies(t *testing.T) {
	h := hostWithCgroup(t, policy.BlockAll())
	testenv.StartWorkload(t, h.ns, h.cg).Serve(t, 80)
	outside := testenv.StartWorkload(t, h.outside, nil)
	const short = 200 * time.Millisecond
	connect := testenv.Probe{Kind: testenv.TCP, To: netip.MustParseAddrPort("10.5.0.1:80"), Wait: short}

	if out := outside.Probe(t, connect); out.Answered {
		t.Errorf("block-all answered a SYN: %s", out)
	}
	h.ns.Sysctl(t, "ipv4/tcp_syncookies", "2") // as in a flood
	connect.Wait = testenv.Patience
	if out := outside.Probe(t, connect); !out.Answered {
		t.Errorf("no SYN cookie: %s", out)
	}
	if outside.Connect(t, connect.To).Echoes(t, short) {
		t.Error("data left after the SYN cookie")
	}
}

// joinGroup joins the group that it is told, on d0.
var joinGroup = testenv.NewFunc("join-group", func(args []string) (err error) {
	device, err := net.InterfaceByName("d0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
		&unix.IPMreqn{Multiaddr: netip.MustParseAddr(args[0]).As4(), Ifindex: int32(device.Index)})
})

// The kernel reports on the link which groups a socket joins and leaves.
func TestLimitGroupMembership(t *testing.T) {
	h := hostWithCgroup(t, policy.BlockAll())
	seen := testenv.Observe(t, h.outside, "d0")
	cmd := joinGroup.Command("239.1.2.3")
	testenv.Start(t, cmd, h.ns, h.cg)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	seen.Await(t, 1, func(p testenv.Packet) bool { return p.Protocol == unix.IPPROTO_IGMP })
}

// broadcastWhenTold connects to the address, says so, and sends for each line that it reads.
var broadcastWhenTold = testenv.NewFunc("broadcast-when-told", func(args []string) (err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return err
	}
	to := netip.MustParseAddrPort(args[0])
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return err
	}
	fmt.Println("connected")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(unix.Send(fd, lines.Bytes(), 0))
	}
	return nil
})

// The copy of an IPv4 broadcast or multicast that the kernel gives to the host
// itself belongs to no socket. What judges it is connect, and that was before.
func TestLimitBroadcastToTheHostItself(t *testing.T) {
	h := hostWithCgroup(t, &policy.Policy{Mode: policy.ModeDenylist})
	service := hostService(t, h.ns, 5555)
	seen := testenv.Observe(t, h.outside, "d0")
	cmd := broadcastWhenTold.Command("10.5.0.255:5555")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	testenv.Start(t, cmd, h.ns, h.cg)
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || line != "connected\n" {
		t.Fatalf("%q, %v", line, err)
	}
	replace(t, h.d, h.id, policy.BlockAll())
	if _, err := in.Write([]byte("to all\n")); err != nil {
		t.Fatal(err)
	}
	if err := service.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := service.ReadFrom(make([]byte, 64)); err != nil {
		t.Errorf("the host's copy: %v", err)
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "operation not permitted\n" {
		t.Errorf("send: %q, %v; want the packet proper to be refused", line, err)
	}
	ping := testenv.Probe{Kind: testenv.Echo, To: netip.MustParseAddrPort("10.5.0.2:0"), Wait: testenv.Patience}
	if after := testenv.StartWorkload(t, h.ns, nil).Probe(t, ping); !after.Answered {
		t.Fatalf("ping from the host: %s", after)
	}
	if got := seen.Sum(t, testenv.To(netip.MustParseAddr("10.5.0.255"))); got.Count != 0 {
		t.Errorf("%d packets left by the device", got.Count)
	}
}

// A bridge sees what goes up to the host, not what goes from port to port.
func TestLimitBridge(t *testing.T) {
	d := open(t, pinDir(t))
	self, one, two := testenv.Self(t), testenv.NewNS(t), testenv.NewNS(t)
	for i, ns := range []*testenv.NS{one, two} {
		addr := netip.MustParsePrefix(fmt.Sprintf("10.8.0.%d/24", i+2))
		testenv.Veth(t, testenv.End{NS: self, Name: fmt.Sprintf("port%d", i)}, testenv.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{addr}})
	}
	testenv.Bridge(t, testenv.End{NS: self, Name: "bridge0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.1/24")}}, "port0", "port1")
	tg, err := target.ResolveInterface("bridge0", target.DirectionAuto, "")
	if err != nil {
		t.Fatal(err)
	}
	attach(t, d, tg)
	w := testenv.StartWorkload(t, one, nil)
	ping := func(to string, wait time.Duration) testenv.Outcome {
		return w.Probe(t, testenv.Probe{Kind: testenv.Echo, To: netip.AddrPortFrom(netip.MustParseAddr(to), 0), Wait: wait})
	}
	if out := ping("10.8.0.3", testenv.Patience); !out.Answered {
		t.Errorf("from port to port: %s", out)
	}
	if out := ping("10.8.0.1", 200*time.Millisecond); out.Answered {
		t.Errorf("block-all let the host be reached: %s", out)
	}
}

// A prefix that only this network's translator knows looks like any other address.
func TestLimitTranslatorsOfTheNetwork(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeDenylist, Deny: []policy.Rule{rule("10.0.0.0/8")}})
	if got := run(t, d.bpf.NfOutL2, tg, udp6("64:ff9b::10.0.0.1", 9)); got != dropped {
		t.Errorf("well-known prefix (RFC 6052): verdict %#x, want drop", got)
	}
	if got := run(t, d.bpf.NfOutL2, tg, udp6("64:ff9b:1::10.0.0.1", 9)); got != passed {
		t.Errorf("local prefix (RFC 8215): verdict %#x", got)
	}
}
