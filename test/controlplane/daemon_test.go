// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// start starts a control plane and a daemon that is connected to it. Both are in ns; nil is the suite's own.
func start(t *testing.T, ns *testenv.NS, builtFrom string, env ...string) (*harness.Daemon, *plane) {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	p := newPlane(t, ns, builtFrom)
	d := harness.New(t, ns, append([]string{"NETFENCE_CONTROL_PLANE_URL=" + p.Address}, env...)...)
	d.Start(t)
	if request := p.Connect(); len(request.Attachments) != 0 {
		t.Fatalf("a new daemon has %v", request.Attachments)
	}
	return d, p
}

// attach attaches a target, which the control plane acknowledges with ack, and returns the id.
func attach(t *testing.T, d *harness.Daemon, p *plane, ack string, args ...string) string {
	t.Helper()
	attached := d.Go(t, append([]string{"attach"}, args...)...)
	id := p.Subscribed().ID
	p.Send(`{"id": %q, "subscribed_ack": %s}`, id, ack)
	if r := <-attached; r.Code != 0 || r.Stdout != id+"\n" {
		t.Fatalf("attach: %+v, want the id %s", r, id)
	}
	return id
}

// attachCgroup is attach for tests of what the command line shows: a cgroup, empty, with an allowlist of nothing.
func attachCgroup(t *testing.T, d *harness.Daemon, p *plane) string {
	t.Helper()
	return attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST"}`, "--cgroup", testenv.NewCgroup(t).Path)
}

// echo is the port of the outside's echo server, short how long is waited for an answer that is not to come.
const (
	echo  = 7
	short = 300 * time.Millisecond
)

// newWorld is a workload behind a veth and an outside that answers everything.
func newWorld(t *testing.T) (*testenv.World, *testenv.Workload) {
	t.Helper()
	testenv.Require(t, testenv.Root)
	w := testenv.NewWorld(t, testenv.NewNS(t), testenv.VethDevice)
	testenv.EchoServer(t, w.Outside, echo)
	return w, testenv.StartWorkload(t, w.Workload, nil)
}

// passes and blocked try an address by TCP.
func passes(t *testing.T, w *testenv.Workload, address string) {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(address), echo)
	var out testenv.Outcome
	testenv.Eventually(t, "the neighbour to be found, of which block-all let nobody ask", func() bool {
		out = w.Probe(t, testenv.Probe{Kind: testenv.TCP, To: to, Wait: testenv.Patience})
		return out.Errno != unix.EHOSTUNREACH
	})
	if !out.Answered {
		t.Errorf("%s: %s, want it to pass", address, out)
	}
}

func blocked(t *testing.T, w *testenv.Workload, address string) {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(address), echo)
	if out := w.Probe(t, testenv.Probe{Kind: testenv.TCP, To: to, Wait: short}); out.Answered {
		t.Errorf("%s: %s, want it blocked", address, out)
	}
}

// await waits until `policy show` of the attachment is as want says. Unnumbered commands are not answered.
func await(t *testing.T, d *harness.Daemon, id, what string, want func(harness.Shown) bool) {
	t.Helper()
	var last harness.Shown
	defer func() {
		if t.Failed() {
			t.Logf("policy show: %+v", last)
		}
	}()
	testenv.Eventually(t, what, func() bool {
		last = d.Show(t, id)
		return want(last)
	})
}
