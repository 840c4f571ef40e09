// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
	"github.com/netfence/netfence/test/vm/order"
)

// The virtio modules need each other; the guest finds the order.
var microModules = []string{
	"drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_mmio",
	"net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
}

const (
	tap      = "vm0"
	guestMAC = "52:54:00:00:00:02"
	echoPort = 7
	upstream = "198.51.100.53"
)

var (
	hostAddrs  = []netip.Prefix{netip.MustParsePrefix("10.78.0.1/24"), netip.MustParsePrefix("fd78::1/64")}
	guestAddrs = []netip.Prefix{netip.MustParsePrefix("10.78.0.2/24"), netip.MustParsePrefix("fd78::2/64")}
)

const microPolicy = `
mode: allowlist
allow: [198.51.100.0/24, "2001:db8:100::/48"]
dns:
  allow: ["allowed.example"]
`

// guest is a virtual machine behind a tap of a host with a daemon.
type guest struct {
	*machine
	*harness.Daemon
	world   *testenv.World
	arrived *testenv.Observer // what leaves the host
	id      string
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	m := newImage(t, microModules...)
	host := testenv.NewNS(t)
	w := testenv.NewWorld(t, host, testenv.VethDevice)
	testenv.EchoServer(t, w.Outside, echoPort)
	testenv.ServeDNS(t, w.Outside, testenv.Zone{Records: []string{
		"allowed.example. 60 IN A 203.0.113.7", "allowed.example. 60 IN AAAA 2001:db8:200::7", "refused.example. 60 IN A 203.0.113.8",
	}}, upstream)
	makeTap(t, host)
	g := &guest{
		world: w, Daemon: harness.New(t, host, "NETFENCE_DNS_UPSTREAM="+upstream), arrived: testenv.Observe(t, w.Outside, "eth0"),
	}
	g.machine = m.boot(t, host, hostTime, order.Order{
		Network: &order.Network{Addrs: guestAddrs, Gateways: []netip.Addr{hostAddrs[0].Addr(), hostAddrs[1].Addr()}},
		Obey:    true,
	}, "-m", "256",
		"-netdev", "tap,id=net,ifname="+tap+",script=no,downscript=no", "-device", "virtio-net-device,netdev=net,mac="+guestMAC)
	g.Policy(t, "guests.yaml", microPolicy)
	g.Start(t)
	g.await(t, bootTime, order.Up)
	return g
}

func makeTap(t *testing.T, host *testenv.NS) {
	t.Helper()
	var err error
	host.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = tap
		device := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: unix.IFF_VNET_HDR | unix.IFF_NO_PI}
		if err = netlink.LinkAdd(device); err != nil {
			return
		}
		for _, a := range hostAddrs {
			addr := &netlink.Addr{
				IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}, Flags: unix.IFA_F_NODAD,
			}
			if err = netlink.AddrAdd(device, addr); err != nil {
				return
			}
		}
		err = netlink.LinkSetUp(device)
	})
	if err != nil {
		t.Fatalf("tap %s: %v", tap, err)
	}
}

// counters are those of the attachment.
func (g *guest) counters(t *testing.T) harness.Attachment {
	t.Helper()
	list := g.List(t)
	at := slices.IndexFunc(list, func(a harness.Attachment) bool { return a.ID == g.id })
	if at < 0 {
		t.Fatalf("%s is not attached: %+v", g.id, list)
	}
	return list[at]
}

// reaches has the guest send to an address by every protocol, and fails unless it is answered, or never is and nothing
// leaves the host.
func (g *guest) reaches(t *testing.T, addr string, want bool) {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort)
	for _, kind := range []testenv.ProbeKind{testenv.TCP, testenv.UDPSendto, testenv.Echo} {
		patience := testenv.Patience
		if !want {
			patience /= 5
		}
		got := g.ask(t, order.Ask{Probe: &testenv.Probe{Kind: kind, To: to, Wait: patience}})
		if got.Err != "" || got.Outcome.Answered != want {
			t.Errorf("%s to %s: %s %s, want an answer: %t", kind, addr, got.Outcome, got.Err, want)
		}
	}
	if left := g.arrived.Sum(t, testenv.To(to.Addr())).Count; left > 0 != want {
		t.Errorf("%d packets to %s left the host", left, addr)
	}
}

// TestMicroVM filters a virtual machine by its tap: one that Netfence knows nothing of, with a kernel of its own.
func TestMicroVM(t *testing.T) {
	g := newGuest(t)
	const allowed4, allowed6, other4, other6 = "198.51.100.7", "2001:db8:100::7", "203.0.113.9", "2001:db8:200::9"

	g.reaches(t, other4, true) // what is not attached is not filtered
	g.id = g.Attach(t, "--interface", tap)

	t.Run("addresses", func(t *testing.T) {
		before := g.counters(t)
		g.reaches(t, allowed4, true)
		g.reaches(t, allowed6, true)
		g.reaches(t, "203.0.113.10", false)
		g.reaches(t, other6, false)
		after := g.counters(t)
		if got := after.Drops["no-rule"] - before.Drops["no-rule"]; got < 6 {
			t.Errorf("%d packets counted as no-rule, want 6 or more: %v", got, after.Drops)
		}
		if after.PacketsAllowed < before.PacketsAllowed+6 {
			t.Errorf("%d packets allowed", after.PacketsAllowed-before.PacketsAllowed)
		}
	})
	t.Run("names", g.names)
	t.Run("frames", g.frames)
	t.Run("daemon killed", func(t *testing.T) {
		g.Kill(t)
		g.reaches(t, allowed4, true)
		g.reaches(t, "203.0.113.11", false)
		g.Start(t)
		g.reaches(t, allowed4, true)
		g.reaches(t, "203.0.113.12", false)
	})
	g.off(t)
}

// names asks a resolver that everybody knows, and that is never asked.
func (g *guest) names(t *testing.T) {
	query := func(name string, qtype uint16, tcp bool) order.Answer {
		return g.ask(t, order.Ask{Query: &order.Query{
			Server: netip.AddrPortFrom(netip.MustParseAddr(testenv.ForeignResolver4), 53), Name: name, Type: qtype, TCP: tcp,
		}})
	}
	for _, tt := range []struct {
		qtype uint16
		tcp   bool
		want  string
	}{{dns.TypeA, false, "203.0.113.7"}, {dns.TypeA, true, "203.0.113.7"}, {dns.TypeAAAA, false, "2001:db8:200::7"}} {
		got := query("allowed.example.", tt.qtype, tt.tcp)
		if len(got.Addrs) != 1 || got.Addrs[0] != netip.MustParseAddr(tt.want) {
			t.Errorf("allowed.example %s, TCP %t: %+v", dns.TypeToString[tt.qtype], tt.tcp, got)
			continue
		}
		g.reaches(t, tt.want, true)
	}
	if got := query("refused.example.", dns.TypeA, false); got.Rcode != dns.RcodeNameError || len(got.Addrs) > 0 {
		t.Errorf("refused.example: %+v", got)
	}
	g.reaches(t, "203.0.113.8", false)
	if left := g.arrived.Sum(t, testenv.To(netip.MustParseAddr(testenv.ForeignResolver4))).Count; left > 0 {
		t.Errorf("%d packets to the resolver that the guest asked left the host", left)
	}
}

// frames sends what only a guest with a link of its own can: tags, and what is no IP. The host has no VLAN devices, so
// where such a frame ends tells nothing; the counters tell of the verdict.
func (g *guest) frames(t *testing.T) {
	host := hostMAC(t, g.NS)
	for _, tt := range []struct {
		name   string
		types  []uint16 // outermost first
		to     string
		reason string // "": allowed
	}{
		{"no tag, allowed", []uint16{unix.ETH_P_IP}, "198.51.100.20", ""},
		{"no tag, refused", []uint16{unix.ETH_P_IP}, "203.0.113.20", "no-rule"},
		{"tag, allowed", []uint16{unix.ETH_P_8021Q, unix.ETH_P_IP}, "198.51.100.21", ""},
		{"tag, refused", []uint16{unix.ETH_P_8021Q, unix.ETH_P_IP}, "203.0.113.21", "no-rule"},
		{"two tags, refused", []uint16{unix.ETH_P_8021AD, unix.ETH_P_8021Q, unix.ETH_P_IP}, "203.0.113.22", "no-rule"},
		{"three tags", []uint16{unix.ETH_P_8021AD, unix.ETH_P_8021Q, unix.ETH_P_8021Q, unix.ETH_P_IP}, "198.51.100.22", "vlan-depth"},
		{"not IP", []uint16{unix.ETH_P_LLDP}, "198.51.100.23", "not-ip"},
	} {
		const n = 20 // more than the guest sends by itself meanwhile
		before := g.counters(t)
		for range n {
			if got := g.ask(t, order.Ask{Frame: frame(host, tt.to, tt.types)}); got.Err != "" {
				t.Fatalf("%s: %s", tt.name, got.Err)
			}
		}
		testenv.Eventually(t, tt.name+", counted", func() bool {
			after := g.counters(t)
			if tt.reason == "" {
				return after.PacketsAllowed-before.PacketsAllowed >= n && after.PacketsBlocked-before.PacketsBlocked < n
			}
			return after.Drops[tt.reason]-before.Drops[tt.reason] >= n
		})
	}
	g.arrived.Await(t, 1, testenv.To(netip.MustParseAddr("198.51.100.20")))
	for _, refused := range []string{"203.0.113.20", "203.0.113.21", "203.0.113.22", "198.51.100.22"} {
		if left := g.arrived.Sum(t, testenv.To(netip.MustParseAddr(refused))).Count; left > 0 {
			t.Errorf("%d packets to %s left the host", left, refused)
		}
	}
}

func hostMAC(t *testing.T, host *testenv.NS) (mac net.HardwareAddr) {
	t.Helper()
	var err error
	host.Do(func() {
		var l netlink.Link
		if l, err = netlink.LinkByName(tap); err == nil {
			mac = l.Attrs().HardwareAddr
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// frame is a datagram to an address behind the given types of link-layer header.
func frame(host net.HardwareAddr, to string, types []uint16) []byte {
	mac, _ := net.ParseMAC(guestMAC)
	b := slices.Concat(host, mac)
	for i, typ := range types {
		if i > 0 {
			b = binary.BigEndian.AppendUint16(b, uint16(i)) // the VLAN
		}
		b = binary.BigEndian.AppendUint16(b, typ)
	}
	payload := []byte("frame")
	const header, datagram = 20, 8
	ip := make([]byte, header+datagram, header+datagram+len(payload))
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(cap(ip)))
	copy(ip[12:], guestAddrs[0].Addr().AsSlice())
	copy(ip[16:], netip.MustParseAddr(to).AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:header]))
	binary.BigEndian.PutUint16(ip[header:], 4000)
	binary.BigEndian.PutUint16(ip[header+2:], 4000)
	binary.BigEndian.PutUint16(ip[header+4:], uint16(datagram+len(payload))) // without a checksum, which IPv4 allows
	return append(b, append(ip, payload...)...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
