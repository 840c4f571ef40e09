// SPDX-License-Identifier: Apache-2.0

package target

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/testenv"
)

// A default route that comes to leave by an interface puts its direction in doubt, unless that was asked for.
func TestWatchDefaultRoutes(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, guest := testenv.NewNS(t), testenv.NewNS(t)
	resolve := func(name string, want Direction) (resolved Target) {
		testenv.Veth(t, testenv.End{NS: host, Name: name}, testenv.End{NS: guest, Name: name})
		host.Do(func() {
			var err error
			if resolved, err = ResolveInterface(name, want, ""); err != nil {
				t.Fatal(err)
			}
		})
		return resolved
	}
	follows, later := resolve("follows", DirectionAuto), resolve("later", DirectionAuto)
	asked, out := resolve("asked", Ingress), resolve("out", Egress)
	var w *Watcher
	host.Do(func() { w = newWatcher(t) })
	for _, watched := range []Target{follows, asked, out} {
		w.Add(watched)
	}
	run(t, w)

	for _, device := range []string{"asked", "out"} { // nobody's doubt
		defaultRoute(t, host, "0.0.0.0/1", device)
		defaultRoute(t, host, "::/0", device)
	}
	defaultRoute(t, host, "0.0.0.0/0", "follows")
	if got := expect(t, w, Doubtful, follows); got.Direction != Ingress {
		t.Errorf("direction %s, want to have stayed %s", got.Direction, Ingress)
	}

	// Told once for as long as it lasts; its name goes on being followed.
	defaultRoute(t, host, "::/1", "follows")
	edit(t, host, "follows", rename("followed"))
	if got := expect(t, w, Renamed, follows); got.Directed {
		t.Error("a rename has lost whether the direction was asked for")
	}

	// One that is there before the interface is watched, as at a start of the daemon.
	defaultRoute(t, host, "128.0.0.0/1", "later")
	w.Add(later)
	expect(t, w, Doubtful, later)

	// Gone and back is a doubt of its own.
	host.Do(func() {
		leave, err := uplinks(&netlink.Handle{})
		if err != nil || !leave[later.Ifindex] || !leave[follows.Ifindex] {
			t.Fatalf("default routes leave by %v, %v", leave, err)
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: later.Ifindex}, netlink.RT_FILTER_OIF)
		if err != nil || len(routes) != 1 {
			t.Fatalf("routes %v, %v, want one", routes, err)
		}
		if err := netlink.RouteDel(&routes[0]); err != nil {
			t.Fatal(err)
		}
	})
	testenv.Eventually(t, "that it is gone to be seen", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !w.rerouted && !w.watched[later.key()].uplink
	})
	defaultRoute(t, host, "0.0.0.0/0", "later")
	expect(t, w, Doubtful, later)
}
