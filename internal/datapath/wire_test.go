// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// counted waits until the attachment has judged as many packets as before and one
// more, and returns what came to the counters by it.
func counted(t *testing.T, d *Datapath, id string, before Counters) (allowed, bytes uint64, reason string) {
	t.Helper()
	var now Counters
	testenv.Eventually(t, "a packet judged", func() bool {
		var err error
		if now, err = d.Counters(id); err != nil {
			t.Fatal(err)
		}
		return now.PacketsAllowed+now.PacketsDropped > before.PacketsAllowed+before.PacketsDropped
	})
	for r := range now.Drops {
		if now.Drops[r] > before.Drops[r] {
			reason = r
		}
	}
	return now.PacketsAllowed - before.PacketsAllowed, now.BytesAllowed + now.BytesDropped - before.BytesAllowed - before.BytesDropped, reason
}

// TestTagsBesideTheFrame are the outermost ones of what comes from a device: the
// kernel has taken them out before anybody looks.
func TestTagsBesideTheFrame(t *testing.T) {
	w, d, id := worldOf(t, testenv.VethDevice, &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("198.51.100.7/32")}})
	quiet(t, w)
	to := func(dst string) []byte {
		return sealed(ipv4{src: "10.77.0.2", dst: dst, proto: protoUDP}.packet(udp(4000, 9)))
	}
	const allowed, unlisted = "198.51.100.7", "203.0.113.7"
	tag := func(next int) []byte { return join([]byte{0, 7}, be16(next)) }
	for _, tt := range []struct {
		name   string
		outer  int
		packet []byte
		reason string // "": it passes
	}{
		{"no tag", etherIPv4, to(allowed), ""},
		{"no tag, unlisted", etherIPv4, to(unlisted), "no-rule"},
		{"one tag", etherVLAN, join(tag(etherIPv4), to(allowed)), ""},
		{"one tag, unlisted", etherVLAN, join(tag(etherIPv4), to(unlisted)), "no-rule"},
		{"two tags", etherQinQ, join(tag(etherVLAN), tag(etherIPv4), to(allowed)), ""},
		{"two tags, unlisted", etherQinQ, join(tag(etherVLAN), tag(etherIPv4), to(unlisted)), "no-rule"},
		{"three tags", etherQinQ, join(tag(etherVLAN), tag(etherVLAN), tag(etherIPv4), to(allowed)), "vlan-depth"},
		{"a query in a tag", etherVLAN, join(tag(etherIPv4), sealed(ipv4{src: "10.77.0.2", dst: allowed, proto: protoUDP}.packet(udp(4000, 53)))), "dns"},
	} {
		before, err := d.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		sendFrame(t, w, tt.outer, tt.packet, nil)
		passed, _, reason := counted(t, d, id, before)
		if reason != tt.reason || (passed == 1) != (tt.reason == "") {
			t.Errorf("%s: dropped for %q, want %q", tt.name, reason, tt.reason)
		}
	}
}

// quiet has the workload send nothing of its own accord: no IPv6, and no ARP.
func quiet(t *testing.T, w *testenv.World) {
	t.Helper()
	w.Workload.Sysctl(t, "ipv6/conf/all/disable_ipv6", "1")
	known := func(ns *testenv.NS, device, neighbour string, mac []byte) {
		var err error
		ns.Do(func() {
			var l netlink.Link
			if l, err = netlink.LinkByName(device); err == nil {
				err = netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET,
					State: netlink.NUD_PERMANENT, IP: net.ParseIP(neighbour), HardwareAddr: mac})
			}
		})
		if err != nil {
			t.Fatalf("neighbour %s: %v", neighbour, err)
		}
	}
	known(w.Host, w.Link, "10.77.0.2", hardwareAddr(t, w.Workload, "eth0"))
	known(w.Workload, "eth0", "10.77.0.1", hardwareAddr(t, w.Host, w.Link))
}

// TestSegmentsAreJudgedTogether: what is to become many packets only behind the
// filter passes as a whole, or not at all.
func TestSegmentsAreJudgedTogether(t *testing.T) {
	w, d, id := worldOf(t, testenv.VethDevice, &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{
		rule("198.51.100.7/32", ports(9, 9, policy.UDP)),
	}})
	quiet(t, w)
	const segments, size = 20, 1000
	for _, tt := range []struct {
		to, reason string
	}{{"198.51.100.7:9", ""}, {"198.51.100.7:10", "no-rule"}, {"203.0.113.7:9", "no-rule"}} {
		before, err := d.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		w.Workload.Do(func() { err = sendSegments(netip.MustParseAddrPort(tt.to), segments, size) })
		if err != nil {
			t.Fatal(err)
		}
		passed, bytes, reason := counted(t, d, id, before)
		if reason != tt.reason || (passed == 1) != (tt.reason == "") {
			t.Errorf("%s: %d passed, dropped for %q, want %q", tt.to, passed, reason, tt.reason)
		}
		if bytes < segments*size {
			t.Errorf("%s: %d bytes in one packet: the kernel has made the segments before the filter", tt.to, bytes)
		}
	}
}

// sendSegments sends datagrams by one call, as one packet that the device is to
// take apart (udp(7), UDP_SEGMENT).
func sendSegments(to netip.AddrPort, segments, size int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
		return err
	}
	return unix.Sendto(fd, make([]byte, segments*size), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
}
