// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// A workload that may send to its own address gets its packets back from the
// host. A SYN that claims to come from somebody must not permit to answer him.
func TestWorkloadForgesNoReplyFlow(t *testing.T) {
	const victim = "198.51.100.9"
	for name, device := range map[string]testenv.Device{
		"veth": testenv.VethDevice, "tap": testenv.TapDevice, "bridge port": testenv.BridgePort,
	} {
		t.Run(name, func(t *testing.T) {
			w, d, id := worldOf(t, device, &policy.Policy{
				Mode:  policy.ModeAllowlist,
				Allow: []policy.Rule{rule("10.77.0.0/24"), rule("203.0.113.1/32")},
			})
			w.Host.Sysctl(t, "ipv4/conf/all/rp_filter", "0")
			back := testenv.Observe(t, w.Workload, "eth0")
			seen := testenv.Observe(t, w.Outside, "eth0")
			me := w.Addr4.String()
			send := func(src, dst string, proto byte, payload []byte) {
				sendFrame(t, w, etherIPv4, sealed(ipv4{src: src, dst: dst, proto: proto}.packet(payload)), nil)
			}
			send(victim, me, protoTCP, tcp(5000, 80, flagSYN))
			send(victim, me, protoICMP, icmp(8, 77))
			back.Await(t, 2, func(p testenv.Packet) bool { return p.Src == netip.MustParseAddr(victim) && p.Dst == w.Addr4 })
			if n := flows(t, d, id); n != 0 {
				t.Errorf("%d flows from the workload's own packets", n)
			}
			send(me, victim, protoTCP, tcp(80, 5000, flagACK))
			send(me, victim, protoICMP, icmp(0, 77))
			send(me, "203.0.113.1", protoUDP, udp(1, 9))
			seen.Await(t, 1, testenv.To(netip.MustParseAddr("203.0.113.1")))
			if got := seen.Sum(t, testenv.To(netip.MustParseAddr(victim))); got.Count != 0 {
				t.Errorf("%d packets to %s left", got.Count, victim)
			}

			// Somebody else's do begin one, through the same host.
			w.Workload.Listen(t, "tcp", fmt.Sprintf("%s:8080", me))
			w.Outside.Dial(t, "tcp", fmt.Sprintf("%s:8080", me))
			if n := flows(t, d, id); n != 1 {
				t.Errorf("%d flows from outside, want 1", n)
			}
		})
	}
}
