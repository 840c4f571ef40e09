// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// Ports on which others serve, and the workload should not be served: the host, and another cgroup.
const (
	hostService    = 9002
	siblingService = 9003
)

// TestLoopbackOfACgroup is shared with the host, and yet only the workload's own services are within reach.
func TestLoopbackOfACgroup(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	job := testenv.StartWorkload(t, s.Host, cg)
	child := testenv.StartWorkload(t, s.Host, cg.Child(t, "child"))
	const childPort = servedPort + 1
	job.Serve(t, servedPort)
	child.Serve(t, childPort)
	s.OnHost.Serve(t, hostService)
	testenv.StartWorkload(t, s.Host, testenv.NewCgroup(t)).Serve(t, siblingService)
	onLo := testenv.Observe(t, s.Host, "lo")
	s.Policy(t, "policy.yaml", "mode: allowlist\n")
	s.Start(t)
	id := s.Attach(t, "--cgroup", cg.Path)

	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.1.2.3"), netip.IPv6Loopback()}
	for _, addr := range addrs {
		answers(t, "own server", job, netip.AddrPortFrom(addr, servedPort))
		answers(t, "server of a child", job, netip.AddrPortFrom(addr, childPort))
		answers(t, "server of the parent", child, netip.AddrPortFrom(addr, servedPort))
		refuses(t, onLo, "host service", job, netip.AddrPortFrom(addr, hostService))
		refuses(t, onLo, "service of another cgroup", job, netip.AddrPortFrom(addr, siblingService))
		// A reply through lo, to a connection that the host has opened.
		if !s.OnHost.Connect(t, netip.AddrPortFrom(addr, servedPort)).Echoes(t, testenv.Patience) {
			t.Errorf("from the host to the workload at %s: no echo", addr)
		}
	}
	// An address of the host's other devices leads through lo, too.
	for _, addr := range hostAddrs {
		refuses(t, onLo, "host service", job, netip.AddrPortFrom(addr, hostService))
	}
	answers(t, "host client of the host service", s.OnHost, netip.AddrPortFrom(addrs[0], hostService))

	// A port that nobody serves refuses as it always does.
	out := job.Probe(t, testenv.Probe{Kind: testenv.TCP, To: netip.AddrPortFrom(addrs[0], 1), Wait: testenv.Patience})
	if out.Answered || out.Errno == 0 {
		t.Errorf("port that nobody serves: %s, want connection refused", out)
	}

	s.Policy(t, "policy.yaml", "mode: allowlist\nallow: [127.0.0.0/8:9002/tcp]\n")
	s.inForce(t, id, "127.0.0.0/8")
	p := testenv.Probe{Kind: testenv.TCP, To: netip.AddrPortFrom(addrs[0], hostService), Wait: testenv.Patience}
	if out := job.Probe(t, p); !out.Answered {
		t.Errorf("host service, with a rule: %s", out)
	}
	refuses(t, onLo, "host service, with a rule for the other family", job, netip.AddrPortFrom(netip.IPv6Loopback(), hostService))

	s.Must(t, "detach", "--id", id)
	for _, addr := range append(addrs, hostAddrs...) {
		answers(t, "host service, without the filter", job, netip.AddrPortFrom(addr, hostService))
		answers(t, "service of another cgroup, without the filter", job, netip.AddrPortFrom(addr, siblingService))
	}
}

// TestLoopbackAddressesOnTheWire are dropped whatever the rules say: loopback means leaving through lo.
func TestLoopbackAddressesOnTheWire(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	job := testenv.StartWorkload(t, s.Host, cg)
	s.Policy(t, "policy.yaml", "mode: allowlist\nallow: [0.0.0.0/0, \"::/0\"]\n")
	s.Start(t)
	id := s.Attach(t, "--cgroup", cg.Path)

	for _, to := range []string{"127.0.0.1:7", "127.9.9.9:7", "[::1]:7"} {
		for _, kind := range answered {
			p := testenv.Probe{Kind: kind, To: netip.MustParseAddrPort(to), Device: uplink, Count: 3, Wait: 10 * time.Millisecond}
			before := s.Arrived.Sum(t, matches(p)).Count
			if out := job.Probe(t, p); out.Answered {
				t.Errorf("%s to %s: %s", kind, to, out)
			}
			s.settle(t, job)
			if n := s.Arrived.Sum(t, matches(p)).Count - before; n != 0 {
				t.Errorf("%s bound to %s: %d packets to %s arrived outside", kind, uplink, n, to)
			}
			// The same from beside the cgroup shows that they would leave.
			s.OnHost.Probe(t, p)
			s.Arrived.Await(t, before+1, matches(p))
		}
	}
	if drops := s.Show(t, id).Drops; drops["loopback"] == 0 {
		t.Errorf("drops by reason: %v", drops)
	}
}

func answers(t *testing.T, what string, w *testenv.Workload, to netip.AddrPort) {
	t.Helper()
	for _, kind := range []testenv.ProbeKind{testenv.TCP, testenv.UDPConnected, testenv.UDPSendto} {
		if out := w.Probe(t, testenv.Probe{Kind: kind, To: to, Wait: testenv.Patience}); !out.Answered {
			t.Errorf("%s: %s to %s: %s", what, kind, to, out)
		}
	}
}

// refuses shows by an observer on lo that nothing gets there.
func refuses(t *testing.T, onLo *testenv.Observer, what string, w *testenv.Workload, to netip.AddrPort) {
	t.Helper()
	for _, kind := range []testenv.ProbeKind{testenv.TCP, testenv.UDPConnected, testenv.UDPSendto, testenv.UDPSendmmsg} {
		p := testenv.Probe{Kind: kind, To: to, Wait: 10 * time.Millisecond}
		before := onLo.Sum(t, matches(p)).Count
		if out := w.Probe(t, p); out.Answered {
			t.Errorf("%s: %s to %s: %s", what, kind, to, out)
		}
		control := testenv.Probe{Kind: testenv.UDPSendto, To: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), servedPort)}
		arrived := onLo.Sum(t, matches(control)).Count
		w.Probe(t, control)
		onLo.Await(t, arrived+1, matches(control))
		if n := onLo.Sum(t, matches(p)).Count - before; n != 0 {
			t.Errorf("%s: %s to %s: %d packets on lo", what, kind, to, n)
		}
	}
}
