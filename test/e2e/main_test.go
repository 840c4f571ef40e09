// SPDX-License-Identifier: Apache-2.0

// Package e2e shows on a real kernel what netfenced promises: the real program, its command line, real devices and
// cgroups, and packets that are counted where they arrive. One scenario a file.
//
// That something does not pass is shown by an observer behind the filter, and by the same probe passing without the
// filter: a probe that reaches nobody anyway would prove nothing.
package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// rounds is how often to repeat what depends on timing: many times in `make soak`.
func rounds(test, soak int) int {
	if os.Getenv("NETFENCE_SOAK") != "" {
		return soak
	}
	return test
}

// scene is a host with a daemon, a workload behind a device, and an outside where every address echoes.
type scene struct {
	*testenv.World
	*harness.Daemon
	Inside  *testenv.Workload // behind the device
	OnHost  *testenv.Workload // beside the daemon
	Arrived *testenv.Observer // what leaves the host
}

// Ports that echo outside.
const (
	echoPort  = 7
	otherPort = 8443
)

// newScene prepares everything but does not start the daemon; env is the daemon's.
func newScene(t testing.TB, device testenv.Device, env ...string) *scene {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	w := testenv.NewWorld(t, testenv.NewNS(t), device)
	testenv.EchoServer(t, w.Outside, echoPort)
	testenv.EchoServer(t, w.Outside, otherPort)
	return &scene{
		World:   w,
		Daemon:  harness.New(t, w.Host, env...),
		Inside:  testenv.StartWorkload(t, w.Workload, nil),
		OnHost:  testenv.StartWorkload(t, w.Host, nil),
		Arrived: testenv.Observe(t, w.Outside, "eth0"),
	}
}

// hostAddrs are the host's addresses towards the outside, outsideAddrs those of its peer there.
var (
	hostAddrs    = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:2::1")}
	outsideAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8:2::2")}
)

// matches tells which packets at the observer are those of a probe.
func matches(p testenv.Probe) func(testenv.Packet) bool {
	want := testenv.Packet{Dst: p.To.Addr(), Port: p.To.Port()}
	switch p.Kind {
	case testenv.TCP:
		want.Protocol = unix.IPPROTO_TCP
	case testenv.UDPConnected, testenv.UDPSendto, testenv.UDPSendmmsg:
		want.Protocol = unix.IPPROTO_UDP
	case testenv.Echo:
		want.Protocol, want.Port = unix.IPPROTO_ICMP, 8
		if p.To.Addr().Is6() {
			want.Protocol, want.Port = unix.IPPROTO_ICMPV6, 128
		}
	case testenv.Raw:
		want.Protocol, want.Port = p.Protocol, 0
	}
	return func(got testenv.Packet) bool {
		got.Src = netip.Addr{}
		return got == want
	}
}

// udp matches what a flood to the address sends.
func udp(to netip.AddrPort) func(testenv.Packet) bool {
	return matches(testenv.Probe{Kind: testenv.UDPSendto, To: to})
}

// inForce waits until the attachment's policy allows exactly these prefixes.
func (s *scene) inForce(t *testing.T, id string, allow ...string) {
	t.Helper()
	testenv.Eventually(t, fmt.Sprintf("policy %v in force", allow), func() bool {
		var got []string
		for _, rule := range s.Show(t, id).Policy.Allow {
			got = append(got, rule.Prefix.String())
		}
		return slices.Equal(got, allow)
	})
}
