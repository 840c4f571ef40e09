// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// passing is a device that comes and goes.
const passing = "passing0"

// noticed is how soon the control plane has to hear of a vanished target. A second is promised, of a machine that has time;
// a look at all targets every half minute, which would notice in the end, is not what is meant.
const noticed = 5 * time.Second

// TestVanishedTarget is noticed, reported, and leaves nothing of its filter, also when another has taken its name, and
// when it went while no daemon was there to see it.
func TestVanishedTarget(t *testing.T) {
	type target struct {
		*scene
		*testenv.Cgroup
		elsewhere *testenv.NS
	}
	for name, test := range map[string]struct {
		cgroup bool
		vanish func(*testing.T, target)
		there  bool // something stands at the old name afterwards
	}{
		"interface deleted":       {false, func(t *testing.T, at target) { at.deleteLink(t) }, false},
		"interface created again": {false, func(t *testing.T, at target) { at.deleteLink(t); at.addLink(t) }, true},
		"interface moved away":    {false, func(t *testing.T, at target) { at.moveLink(t, at.elsewhere) }, false},
		"cgroup removed":          {true, func(t *testing.T, at target) { at.Remove(t) }, false},
		"cgroup created again":    {true, func(t *testing.T, at target) { at.Remove(t); at.makeCgroup(t, at.Cgroup) }, true},
	} {
		for _, dead := range []bool{false, true} {
			if dead {
				name += " while the daemon is dead"
			}
			t.Run(name, func(t *testing.T) {
				s := newScene(t, testenv.VethDevice)
				p := s.newPlane(t, netip.MustParseAddrPort("192.0.2.2:9000"))
				at := target{s, testenv.NewCgroup(t), testenv.NewNS(t)}
				s.addLink(t)
				attach := []string{"--interface", passing}
				if test.cgroup {
					attach = []string{"--cgroup", at.Path}
				}
				s.Start(t)
				p.Synced(t)
				id := s.attachBy(t, p, attach...)

				if dead {
					s.Kill(t)
				}
				test.vanish(t, at)
				start := testenv.Monotonic()
				if dead {
					s.Start(t)
					start = testenv.Monotonic() // from when there is somebody to notice
					p.Synced(t)
				}
				gone := Await(t, p, (*netfencev1.DaemonEvent).GetUnsubscribed)
				took := testenv.Monotonic() - start
				if gone.GetId() != id || gone.GetReason() != netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_REMOVED {
					t.Errorf("control plane is told %v", gone)
				}
				testenv.Eventually(t, "off the list", func() bool { return len(s.List(t)) == 0 })
				if took > noticed*testenv.Slow {
					t.Errorf("noticed after %s", took)
				}
				s.onlyPinned(t)
				if problems := s.Status(t).Problems; len(problems) != 0 {
					t.Errorf("problems: %v", problems)
				}
				if !test.there {
					r := s.Run(t, append([]string{"attach"}, attach...)...)
					if r.Code != 1 || !strings.Contains(r.Stderr, "no such") {
						t.Errorf("attached again: %+v", r)
					}
					return
				}
				again := s.attachBy(t, p, attach...)
				if again == id {
					t.Errorf("attached again as %s", id)
				}
				s.onlyPinned(t, again)
			})
		}
	}
}

// TestRenamedInterface is followed: the same attachment under its new name, filtered all the time.
func TestRenamedInterface(t *testing.T) {
	s := newScene(t, testenv.BridgePort) // which has no addresses that go when it is down
	s.Policy(t, "table.yaml", tablePolicy)
	s.Start(t)
	id := s.Attach(t, "--interface", s.Link)
	fs := s.floods(t, "interface", s.Inside, 10)
	for i, dead := range []bool{false, true} {
		name := []string{"renamed0", "renamed1"}[i]
		if dead {
			s.Kill(t)
		}
		fs = s.rename(t, []string{s.Link, "renamed0"}[i], name, fs, byte(11+i))
		if dead {
			s.Start(t)
		}
		testenv.Eventually(t, "the new name", func() bool {
			return slices.ContainsFunc(s.List(t), func(a harness.Attachment) bool { return a.ID == id && a.Target == name })
		})
		s.flowing(t, fs, 1000)
	}
	s.end(t, fs)
	s.check(t, s.Inside, table, silent)
	// Another device may have the old name, and is another target.
	s.Host.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = s.Link
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other0"}); err != nil {
			t.Fatal(err)
		}
	})
	other := s.Attach(t, "--interface", s.Link)
	s.onlyPinned(t, id, other)
	if list := s.List(t); len(list) != 2 || other == id {
		t.Errorf("list: %+v", list)
	}
}

// rename renames an interface while packets flow. Before Linux 6.2 it has to be down for that: they end, and others flow
// afterwards.
func (s *scene) rename(t *testing.T, from, to string, fs []*flood, number byte) []*flood {
	t.Helper()
	var busy bool
	s.onLink(t, from, func(l netlink.Link) error {
		err := netlink.LinkSetName(l, to)
		busy = errors.Is(err, unix.EBUSY)
		if busy {
			return nil
		}
		return err
	})
	if !busy {
		return fs
	}
	s.end(t, fs)
	s.onLink(t, from, func(l netlink.Link) error {
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, to), netlink.LinkSetUp(l))
	})
	return s.floods(t, "interface", s.Inside, number)
}

// addLink makes the passing device, a veth whose other end is beside it. It goes with the namespace.
func (s *scene) addLink(t *testing.T) {
	t.Helper()
	var err error
	s.Host.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = passing
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: passing + "p"})
	})
	if err != nil {
		t.Fatalf("add %s: %v", passing, err)
	}
}

func (s *scene) deleteLink(t *testing.T) {
	t.Helper()
	s.onLink(t, passing, netlink.LinkDel)
}

func (s *scene) moveLink(t *testing.T, to *testenv.NS) {
	t.Helper()
	f, err := os.Open(to.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s.onLink(t, passing, func(l netlink.Link) error { return netlink.LinkSetNsFd(l, int(f.Fd())) })
}

func (s *scene) onLink(t *testing.T, name string, do func(netlink.Link) error) {
	t.Helper()
	var err error
	s.Host.Do(func() {
		var l netlink.Link
		if l, err = netlink.LinkByName(name); err == nil {
			err = do(l)
		}
	})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func (s *scene) makeCgroup(t *testing.T, cg *testenv.Cgroup) {
	t.Helper()
	if err := os.Mkdir(cg.Path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestDirectionInDoubt is an incident, and the filter stays where it is.
func TestDirectionInDoubt(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	s.Policy(t, "table.yaml", tablePolicy)
	s.Start(t)
	id := s.Attach(t, "--interface", s.Link)
	told := s.Follow(t)
	denied := func() { s.check(t, s.Inside, to(false, "203.0.113.9"), nil) }
	told.Provoke(t, "a denied packet", denied, func(e harness.Event) bool { return e.DeniedFlow != nil })
	s.Host.Route(t, netip.MustParsePrefix("8000::/1"), netip.Addr{}, s.Link)
	testenv.Eventually(t, "an incident", func() bool {
		return slices.ContainsFunc(told.All(), func(e harness.Event) bool {
			return e.ID == id && e.Incident != nil && e.Incident.Kind == "direction"
		})
	})
	denied()
}
