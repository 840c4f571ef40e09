// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// addAddr gives the interface an address, and returns how to take it away.
func addAddr(t *testing.T, link, prefix string) (remove func()) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := netlink.AddrDel(l, a); err != nil {
			t.Fatal(err)
		}
	}
}

// onLinkEntries is what the kernel holds, of all attachments.
func onLinkEntries(t *testing.T, d *Datapath) map[bpfOnlinkKey]netip.Prefix {
	t.Helper()
	entries := make(map[bpfOnlinkKey]netip.Prefix)
	var key bpfOnlinkKey
	var value uint8
	all := d.bpf.NfOnlink.Iterate()
	for all.Next(&key, &value) {
		entries[key] = key.prefix()
	}
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return entries
}

func TestNeighbourDiscoveryOnLink(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	remove := addAddr(t, "v0", "2001:db8:77::1/64")
	id := attach(t, d, tg)
	unaddressed := vethTarget(t, "v1")
	replace(t, d, attach(t, d, unaddressed), &policy.Policy{Mode: policy.ModeAllowlist})
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist})
	probe := func(dst string, kind byte, hops byte, payload int) []byte {
		return frame(ipv6{dst: dst, proto: protoICMPv6, hops: hops}.packet(join(icmp(kind, 0), make([]byte, payload))), etherIPv6)
	}
	const near, far = "2001:db8:77::9", "fd99::9"
	testenv.Eventually(t, "prefix on the link", func() bool { return len(onLinkEntries(t, d)) == 1 })
	for _, tt := range []struct {
		name   string
		packet []byte
		want   uint32
	}{
		{"solicitation", probe(near, 135, 255, 0), passed},
		{"advertisement", probe(near, 136, 255, 0), passed},
		{"off the link", probe(far, 135, 255, 0), dropped},
		{"from afar", probe(near, 135, 254, 0), dropped},
		{"with a payload", probe(near, 135, 255, 300), dropped},
		{"router solicitation", probe(near, 133, 255, 0), dropped},
		{"router advertisement", probe(near, 134, 255, 0), dropped},
		{"redirect", probe(near, 137, 255, 0), dropped},
		{"echo request", probe(near, 128, 255, 0), dropped},
		{"behind an extension header", frame(ipv6{dst: near, proto: protoDstOpts, hops: 255}.packet(
			join([]byte{protoICMPv6, 0, 1, 4, 0, 0, 0, 0}, icmp(135, 0))), etherIPv6), dropped},
	} {
		if got := run(t, d.bpf.NfOutL2, tg, tt.packet); got != tt.want {
			t.Errorf("%s: verdict %#x, want %#x", tt.name, got, tt.want)
		}
	}
	if got := run(t, d.bpf.NfOutL2, unaddressed, probe(near, 135, 255, 0)); got != dropped {
		t.Errorf("on another interface's link: verdict %#x, want drop", got)
	}
	replace(t, d, id, policy.BlockAll())
	if got := run(t, d.bpf.NfOutL2, tg, probe(near, 135, 255, 0)); got != dropped {
		t.Errorf("block-all: verdict %#x, want drop", got)
	}
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist})

	remove()
	testenv.Eventually(t, "drop once the address is gone", func() bool {
		return run(t, d.bpf.NfOutL2, tg, probe(near, 135, 255, 0)) == dropped
	})
}

// TestOnLinkIsBounded for each attachment, and empty once it is detached.
func TestOnLinkIsBounded(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	for i := range maxOnLink + 3 {
		addAddr(t, "v0", fmt.Sprintf("2001:db8:%x::1/64", i+1))
	}
	id := attachOnly(t, d, tg)
	testenv.Eventually(t, "prefixes on the link", func() bool { return len(onLinkEntries(t, d)) == maxOnLink })
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	if left := onLinkEntries(t, d); len(left) != 0 {
		t.Errorf("left after detach: %v", left)
	}
}

// TestOnLinkAfterARestart is what the addresses are by then.
func TestOnLinkAfterARestart(t *testing.T) {
	dir := pinDir(t)
	first, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	tg := vethTarget(t, "v0")
	remove := addAddr(t, "v0", "2001:db8:1::1/64")
	addAddr(t, "v0", "2001:db8:2::1/64")
	attachOnly(t, first, tg)
	testenv.Eventually(t, "prefixes on the link", func() bool { return len(onLinkEntries(t, first)) == 2 })
	stray := onLinkKey(4711, netip.MustParsePrefix("2001:db8:4711::/48"))
	if err := first.bpf.NfOnlink.Put(&stray, uint8(1)); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	remove()
	addAddr(t, "v0", "2001:db8:3::1/64")

	d := open(t, dir)
	got := make(map[string]bool)
	for _, p := range onLinkEntries(t, d) {
		got[p.String()] = true
	}
	if len(got) != 2 || !got["2001:db8:2::/64"] || !got["2001:db8:3::/64"] {
		t.Errorf("after the restart: %v", got)
	}
	ids, err := d.IDs()
	if err != nil || len(ids) != 1 {
		t.Fatalf("attachments %v: %v", ids, err)
	}
	if err := d.Detach(ids[0]); err != nil {
		t.Fatal(err)
	}
}

// TestNeighbourIsFoundReachable by the workload's own kernel, whose probes are
// unicast (RFC 4861 section 7.3.3).
func TestNeighbourIsFoundReachable(t *testing.T) {
	for name, device := range map[string]testenv.Device{"veth": testenv.VethDevice, "bridge port": testenv.BridgePort} {
		t.Run(name, func(t *testing.T) {
			w, d, _ := worldOf(t, device, &policy.Policy{Mode: policy.ModeAllowlist})
			testenv.Eventually(t, "prefix on the link", func() bool { return len(onLinkEntries(t, d)) == 1 })
			mac := hardwareAddr(t, w.Host, gatewayOf(w))
			w.Workload.Do(func() {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					t.Fatal(err)
				}
				gateway := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET6, State: unix.NUD_PROBE,
					IP: net.ParseIP("fd77::1"), HardwareAddr: mac}
				if err := netlink.NeighSet(gateway); err != nil {
					t.Fatal(err)
				}
				testenv.Eventually(t, "end of the probes", func() bool {
					neighbours, err := netlink.NeighList(l.Attrs().Index, unix.AF_INET6)
					if err != nil {
						t.Fatal(err)
					}
					for _, n := range neighbours {
						if n.IP.Equal(gateway.IP) {
							if n.State&(unix.NUD_PROBE|unix.NUD_REACHABLE) == 0 {
								t.Fatalf("neighbour in state %#x", n.State)
							}
							return n.State == unix.NUD_REACHABLE
						}
					}
					return false
				})
			})
		})
	}
}
