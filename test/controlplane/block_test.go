// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// becomes waits until packets to an address pass, or are blocked.
func becomes(t *testing.T, w *testenv.Workload, address string, pass bool) {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(address), echo)
	what := address + " is blocked"
	if pass {
		what = address + " passes"
	}
	testenv.Eventually(t, what, func() bool {
		answered, _ := answers(t, w, to)
		return answered == pass
	})
}

// answers tells whether a datagram to an echo server is answered. Not to be takes two, for a server may have been slow
// once; the second was sent at by.
func answers(t *testing.T, w *testenv.Workload, to netip.AddrPort) (answered bool, by time.Time) {
	t.Helper()
	probe := testenv.Probe{Kind: testenv.UDPSendto, To: to, Wait: short}
	if w.Probe(t, probe).Answered {
		return true, by
	}
	probe.Wait = 2 * time.Second
	answered = w.Probe(t, probe).Answered
	return answered, time.Now().Add(-probe.Wait)
}

// With on_disconnect: block, what the control plane has decided ends some time after it is lost, also when the daemon is,
// and comes back with it. What somebody else has decided goes on.
func TestBlockOnDisconnect(t *testing.T) {
	t.Parallel()
	const after = 4 * time.Second
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished, "NETFENCE_CONTROL_PLANE_ON_DISCONNECT={block: "+after.String()+"}")
	const allowed = "198.51.100.1"
	id := attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}]}`, "--interface", w.Link)
	passes(t, workload, allowed)

	// While it is there, nothing ends.
	connected := time.Now()
	for time.Since(connected) < after+time.Second {
		passes(t, workload, allowed)
	}

	p.Stop()
	lost := time.Now()
	passes(t, workload, allowed)
	var end time.Time
	testenv.Eventually(t, allowed+" is blocked", func() (passes bool) {
		passes, end = answers(t, workload, netip.AddrPortFrom(netip.MustParseAddr(allowed), echo))
		return !passes
	})
	if early := after - after/10 - end.Sub(lost); early > 0 {
		t.Errorf("blocked %v before its time", early)
	}
	if problems := strings.Join(d.Status(t).Problems, "\n"); !strings.Contains(problems, "its attachments are blocked since") {
		t.Errorf("status has the problems %q", problems)
	}
	// A daemon that starts is not a control plane that is back.
	d.Kill(t)
	d.Start(t)
	blocked(t, workload, allowed)

	p.Start()
	p.Connect()
	becomes(t, workload, allowed, true)
	if got := words(d.Show(t, id).Policy); got != "allowlist, allow 198.51.100.0/24, dns disabled" {
		t.Errorf("policy %s", got)
	}

	// Nobody is there to count: the kernel does.
	d.Kill(t)
	p.Ended()
	passes(t, workload, allowed)
	becomes(t, workload, allowed, false)
	d.Start(t)
	p.Connect()
	becomes(t, workload, allowed, true)
}

// The lease is the control plane's. A policy that its caller gave does not end with it.
func TestOwnPolicyIsNotLeased(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished, "NETFENCE_CONTROL_PLANE_ON_DISCONNECT={block: 1s}")
	d.Attach(t, "--interface", w.Link, "--policy", writePolicy(t, "mode: allowlist\nallow: [198.51.100.0/24]\n"))
	p.Stop()
	testenv.Eventually(t, "end of the lease", func() bool {
		return strings.Contains(strings.Join(d.Status(t).Problems, "\n"), "blocked since")
	})
	passes(t, workload, "198.51.100.1")
	d.Kill(t)
	passes(t, workload, "198.51.100.1")
}
