// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
)

const uplink = "up0"

// TestEgress filters the device by which the host itself goes out: the same table, for what is routed through it and
// for what the host's own processes send.
func TestEgress(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	s.Inside.Serve(t, servedPort)
	s.OnHost.Serve(t, servedPort)
	s.Policy(t, "table.yaml", tablePolicy)
	s.Start(t)
	id := s.Attach(t, "--interface", uplink, "--direction", "egress")
	if list := s.List(t); len(list) != 1 || list[0].Direction != "egress" {
		t.Fatalf("list: %+v", list)
	}
	for _, from := range []struct {
		*testenv.Workload
		addrs []netip.Addr
	}{{s.Inside, []netip.Addr{s.Addr4, s.Addr6}}, {s.OnHost, hostAddrs}} {
		// The host's own sends can fail early: the device refuses the packet within the call.
		s.check(t, from.Workload, table, nil)
		s.checkReplies(t, from.Workload, from.addrs, nil)
	}
	// Towards the workload nothing is filtered.
	if !s.OnHost.Connect(t, netip.AddrPortFrom(s.Addr4, servedPort)).Echoes(t, testenv.Patience) {
		t.Error("from the host to the workload: no echo")
	}
	s.Must(t, "detach", "--id", id)
	s.check(t, s.Inside, all(true), nil)
	s.check(t, s.OnHost, all(true), nil)
	s.checkRepliesUnfiltered(t, s.OnHost, hostAddrs)
}

// TestDaemonReachesItsControlPlane through a device that it filters itself, with a policy that allows nobody to.
func TestDaemonReachesItsControlPlane(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	address := netip.MustParseAddrPort("203.0.113.80:9000")
	p := s.newPlane(t, address)
	s.Start(t)
	p.Synced(t)

	// The device is closed before the control plane is asked, and the answer has to come through it.
	id := s.attachBy(t, p, "--interface", uplink, "--direction", "egress")
	s.othersAreRefused(t, address)

	command := func() {
		t.Helper()
		if r := p.Command(t, replace(id, allowlist, "198.51.100.0/24")); r.GetCode() != netfencev1.CommandCode_COMMAND_CODE_APPLIED {
			t.Errorf("command: %v", r)
		}
		s.othersAreRefused(t, address)
	}
	command()
	p.Sever()
	p.Synced(t) // on a new socket, exempt as well
	command()
	s.Kill(t)
	s.Start(t)
	if sync := p.Synced(t); !slices.ContainsFunc(sync.GetAttachments(), func(a *netfencev1.Attachment) bool { return a.GetId() == id }) {
		t.Errorf("after a restart: %v", sync)
	}
	command()

	s.Must(t, "detach", "--id", id)
	control := testenv.Probe{Kind: testenv.TCP, To: address, Wait: testenv.Patience}
	if out := s.OnHost.Probe(t, control); !out.Answered {
		t.Errorf("without the filter: %s", out)
	}
}

// othersAreRefused shows that what lets the daemon through lets nobody else.
func (s *scene) othersAreRefused(t *testing.T, to netip.AddrPort) {
	t.Helper()
	for name, w := range map[string]*testenv.Workload{"host": s.OnHost, "workload": s.Inside} {
		if out := w.Probe(t, testenv.Probe{Kind: testenv.TCP, To: to, Wait: 50 * time.Millisecond}); out.Answered {
			t.Errorf("%s to the control plane: %s", name, out)
		}
	}
}
