// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
	"github.com/netfence/netfence/test/harness"
)

// flood is UDP without pause to an address that is always allowed and to one that never is.
type flood struct {
	name               string
	from               *testenv.Workload
	allowed, forbidden netip.AddrPort
	stops              [2]func() testenv.Outcome
}

// floods start one of each family for the workload; the addresses are its own, by its number.
func (s *scene) floods(t testing.TB, name string, from *testenv.Workload, number byte) []*flood {
	t.Helper()
	var fs []*flood
	for _, prefixes := range [][2]string{{"198.51.100.0", "203.0.113.0"}, {"2001:db8:100::", "2001:db8:200::"}} {
		f := &flood{name: name, from: from}
		for i, to := range []*netip.AddrPort{&f.allowed, &f.forbidden} {
			b := netip.MustParseAddr(prefixes[i]).AsSlice()
			b[len(b)-1] = number
			addr, _ := netip.AddrFromSlice(b)
			*to = netip.AddrPortFrom(addr, 9)
			f.stops[i] = from.Flood(t, *to)
		}
		s.Arrived.Await(t, 1, udp(f.allowed))
		fs = append(fs, f)
	}
	return fs
}

// flowing waits until each flood has brought as many more.
func (s *scene) flowing(t testing.TB, fs []*flood, more int) {
	t.Helper()
	for _, f := range fs {
		s.Arrived.Await(t, s.Arrived.Sum(t, udp(f.allowed)).Count+more, udp(f.allowed))
	}
}

// traffic is what floods have sent and what of it arrived.
type traffic struct{ allowed, arrived, forbidden, passed int }

// end shows that every allowed packet of the floods arrived, and no forbidden one.
func (s *scene) end(t testing.TB, fs []*flood) (all traffic) {
	t.Helper()
	for _, f := range fs {
		allowed, tried := f.stops[0](), f.stops[1]().Sent
		sent := allowed.Sent
		s.settle(t, f.from)
		t.Logf("%s: sent %d packets to %s, allowed, and %d to %s, forbidden", f.name, sent, f.allowed, tried, f.forbidden)
		// What a cgroup refuses is not sent, and missing among the numbers.
		got, past := s.Arrived.Sum(t, udp(f.allowed)), s.Arrived.Sum(t, udp(f.forbidden)).Count
		if got.Count != sent || got.Next != sent {
			t.Errorf("%s: %d of %d packets to %s arrived, number %d the last; not sent: %v; drops: %v",
				f.name, got.Count, sent, f.allowed, got.Next-1, allowed.Errors, s.Status(t).Drops)
		}
		if past != 0 {
			t.Errorf("%s: %d of %d packets to %s arrived", f.name, past, tried, f.forbidden)
		}
		all = traffic{all.allowed + sent, all.arrived + got.Count, all.forbidden + tried, all.passed + past}
	}
	return all
}

// standing is everything about the attachments that a restart must not change.
type standing struct {
	Attachments []harness.Attachment
	Policies    []*policy.Policy
	Pins        []string
}

func (s *scene) standing(t *testing.T) standing {
	t.Helper()
	st := standing{Attachments: s.List(t), Pins: s.pins(t)}
	for i := range st.Attachments {
		st.Policies = append(st.Policies, s.Show(t, st.Attachments[i].ID).Policy)
		st.Attachments[i].PacketsAllowed, st.Attachments[i].PacketsBlocked, st.Attachments[i].Drops = 0, 0, nil
	}
	return st
}

// pins lists what is pinned for attachments.
func (s *scene) pins(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(s.BPFDir, "v3", "links", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

const restartPolicy = `
mode: allowlist
allow:
  - 198.51.100.0/24
  - 2001:db8:100::/48
  - {cidr: 203.0.113.77, ports: [443/tcp], ttl: 1h}
`

// TestRestart changes nothing: the same attachments with the same ids and rules, and while the daemon is gone, every
// allowed packet and no forbidden one.
func TestRestart(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	job := testenv.StartWorkload(t, s.Host, cg)
	s.Inside.Serve(t, servedPort)
	s.Policy(t, "policy.yaml", restartPolicy)
	s.Start(t)
	id := s.Attach(t, "--interface", s.Link, "--key", "job-7", "--metadata", "tenant=acme")
	s.Attach(t, "--cgroup", cg.Path)
	outside := testenv.StartWorkload(t, s.Outside, nil)
	conn := outside.Connect(t, netip.AddrPortFrom(s.Addr4, servedPort))
	daemonID := s.Status(t).DaemonID
	before := s.standing(t)
	if len(before.Attachments) != 2 || len(before.Pins) == 0 {
		t.Fatalf("before: %+v", before)
	}

	fs := append(s.floods(t, "interface", s.Inside, 10), s.floods(t, "cgroup", job, 11)...)
	for name, end := range map[string]func(testing.TB){
		"stop": func(t testing.TB) { s.Stop(t) },
		"kill": func(t testing.TB) { s.Kill(t) },
	} {
		s.flowing(t, fs, 1000)
		blocked := s.List(t)[0].PacketsBlocked
		end(t)
		s.flowing(t, fs, 1000)
		if !conn.Echoes(t, testenv.Patience) {
			t.Errorf("%s: connection from outside: no echo while the daemon is gone", name)
		}
		if !outside.Connect(t, netip.AddrPortFrom(s.Addr4, servedPort)).Echoes(t, testenv.Patience) {
			t.Errorf("%s: new connection from outside: no echo while the daemon is gone", name)
		}
		s.Start(t)
		if after := s.standing(t); !reflect.DeepEqual(before, after) {
			t.Errorf("%s:\nbefore %+v\nafter  %+v", name, before, after)
		}
		if now := s.List(t)[0].PacketsBlocked; now <= blocked {
			t.Errorf("%s: %d packets blocked before, %d after", name, blocked, now)
		}
		if got := s.Status(t); got.DaemonID != daemonID || len(got.Problems) != 0 {
			t.Errorf("%s: status %+v", name, got)
		}
	}
	s.end(t, fs)
	if again := s.Attach(t, "--interface", s.Link, "--key", "job-7"); again != id {
		t.Errorf("attached again by its key: %s, want %s", again, id)
	}
}
