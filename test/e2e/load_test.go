// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
)

// TestAttachUnderLoad attaches workloads that send without pause. From the moment the filter is there, not one packet
// leaves that the control plane has not allowed, however long it takes to decide.
func TestAttachUnderLoad(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	p := s.newPlane(t, netip.MustParseAddrPort("192.0.2.2:9000"))
	cg := testenv.NewCgroup(t)
	job := testenv.StartWorkload(t, s.Host, cg)
	s.Start(t)
	p.Synced(t)
	for round := range rounds(3, 200) {
		for i, test := range []struct {
			name string
			from *testenv.Workload
			args []string
		}{
			{"interface", s.Inside, []string{"--interface", s.Link}},
			{"cgroup", job, []string{"--cgroup", cg.Path}},
		} {
			t.Run(fmt.Sprintf("%s %d", test.name, round), func(t *testing.T) {
				// By its port a flood is told from all others to the same address.
				s.attachUnderLoad(t, p, test.from, uint16(10000+2*round+i), test.args)
			})
		}
	}
}

func (s *scene) attachUnderLoad(t *testing.T, p *plane, from *testenv.Workload, port uint16, args []string) {
	allow := []string{"198.51.100.1/32", "198.51.100.9/32", "2001:db8:100::1/128", "2001:db8:100::9/128"}
	type flood struct {
		to      netip.AddrPort
		allowed bool
		stop    func() testenv.Outcome
	}
	floods := []*flood{
		{to: netip.MustParseAddrPort("198.51.100.9:0"), allowed: true},
		{to: netip.MustParseAddrPort("[2001:db8:100::9]:0"), allowed: true},
		{to: netip.MustParseAddrPort("203.0.113.9:0")},
		{to: netip.MustParseAddrPort("[2001:db8:200::9]:0")},
	}
	for _, f := range floods {
		f.to = netip.AddrPortFrom(f.to.Addr(), port)
		f.stop = from.Flood(t, f.to)
		s.Arrived.Await(t, 100, udp(f.to)) // without the filter all of them pass
	}
	// closed shows that of a flood nothing was sent after the filter was there, and nothing missing before.
	closed := func(f *flood, since time.Duration) {
		t.Helper()
		seen := s.Arrived.Sum(t, udp(f.to))
		if seen.LastSent >= since {
			t.Errorf("%s: a packet was sent %s after the filter was there, and arrived", f.to, seen.LastSent-since)
		}
		if seen.Next != seen.Count {
			t.Errorf("%s: %d packets arrived, number %d the last: the filter was closed, and open again", f.to, seen.Count, seen.Next-1)
		}
	}

	attached := s.Go(t, append([]string{"attach"}, args...)...)
	subscribed := Await(t, p, (*netfencev1.DaemonEvent).GetSubscribed)
	since := testenv.Monotonic() // the filter comes before the question
	id := subscribed.GetId()
	testenv.Eventually(t, "a thousand packets dropped", func() bool {
		shown := s.Show(t, id)
		return shown.Pending && shown.Drops["block-all"] > 1000
	})
	for _, f := range floods {
		closed(f, since)
	}
	if n := s.Show(t, id).Attachment.PacketsAllowed; n != 0 {
		t.Errorf("%d packets have passed the filter before there was a policy", n)
	}
	p.Send(t, ack(id, allowlist, allow...))
	if r := <-attached; r.Code != 0 || strings.TrimSpace(r.Stdout) != id {
		t.Fatalf("attach: %+v, subscribed %s", r, id)
	}
	after := testenv.Monotonic()
	for _, f := range floods {
		if f.allowed {
			testenv.Eventually(t, "what is allowed passes again", func() bool { return s.Arrived.Sum(t, udp(f.to)).LastSent > after })
		}
	}
	s.settle(t, from)
	for _, f := range floods {
		f.stop()
		if !f.allowed {
			closed(f, since)
		}
	}
	s.Must(t, "detach", "--id", id)
	Await(t, p, (*netfencev1.DaemonEvent).GetUnsubscribed)
}
