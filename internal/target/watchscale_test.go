// SPDX-License-Identifier: Apache-2.0

package target

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// many is how many targets these tests watch: as many as are promised in `make soak`.
func many() int {
	if os.Getenv("NETFENCE_SOAK") != "" {
		return 10_000
	}
	return 500
}

// noticed is within what time a removal has to be known: as soon as is promised in `make soak`, where nothing else runs.
func noticed() time.Duration {
	if os.Getenv("NETFENCE_SOAK") != "" {
		return time.Second
	}
	return 5 * time.Second * testenv.Slow
}

// expectAll takes the removals of all targets while remove has them go, and
// checks how long the slowest took. remove notes when each went, by name.
func expectAll(t *testing.T, w *Watcher, n int, remove func(went map[string]time.Time)) {
	t.Helper()
	known := make(map[string]time.Time, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for limit := time.After(time.Minute); len(known) < n; {
			select {
			case e := <-w.Events():
				if e.Kind != Removed {
					t.Errorf("%s %s", e.Target, e.Kind)
				}
				known[e.Target.Name] = time.Now()
			case <-limit:
				t.Errorf("%d of %d removals were noticed within a minute", len(known), n)
				return
			}
		}
	}()
	went := make(map[string]time.Time, n)
	start := time.Now()
	remove(went)
	took := time.Since(start)
	<-done
	var slowest time.Duration
	for name, at := range went {
		slowest = max(slowest, known[name].Sub(at))
	}
	t.Logf("%d went within %v; the slowest was noticed after %v", n, took, slowest)
	if slowest > noticed() {
		t.Errorf("the slowest removal was noticed after %v, want %v", slowest, noticed())
	}
}

// TestManyCgroupsVanish one after the other as fast as the kernel lets them go:
// all in one cgroup, each in one of its own, and those that inotify has no room for.
func TestManyCgroupsVanish(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	for name, test := range map[string]struct{ apart, blind bool }{
		"in one parent":             {},
		"each in one of its own":    {apart: true},
		"no room for their parents": {apart: true, blind: true},
	} {
		t.Run(name, func(t *testing.T) {
			outer := testenv.NewCgroup(t)
			w := newWatcher(t)
			if test.blind {
				blindfold(t, w)
			}
			var paths []string
			for i := range many() {
				path := filepath.Join(outer.Path, fmt.Sprint("c", i))
				if test.apart {
					path = filepath.Join(path, "inner")
				}
				if err := os.MkdirAll(path, 0o755); err != nil {
					t.Fatal(err)
				}
				paths = append(paths, path)
				w.Add(resolveCgroup(t, path))
			}
			settle(w)
			if test.blind != (len(w.parents) == 0) {
				t.Fatalf("%d watches", len(w.parents))
			}
			started := cpuTime(t)
			run(t, w)
			expectAll(t, w, len(paths), func(went map[string]time.Time) {
				for _, path := range paths {
					if err := unix.Rmdir(path); err != nil { // which waits for whoever changes cgroups
						t.Error(err)
					}
					went[path] = time.Now()
				}
			})
			t.Logf("processor time, removing included: %v", cpuTime(t)-started)
		})
	}
}

// blindfold gives w a descriptor that takes no watch and has nothing to tell, as
// inotify once fs.inotify.max_user_watches is reached.
func blindfold(t *testing.T, w *Watcher) {
	t.Helper()
	nothing, open, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { open.Close() })
	if err := w.inotify.Close(); err != nil {
		t.Fatal(err)
	}
	w.inotify = nothing
}

// TestManyInterfacesVanish at once: more messages than the socket holds.
func TestManyInterfacesVanish(t *testing.T) {
	testenv.Require(t, testenv.Root)
	const group = 77
	host := testenv.NewNS(t)
	var w *Watcher
	var names []string
	host.Do(func() {
		w = newWatcher(t)
		for i := range many() / 2 {
			attrs := named(fmt.Sprint("many", i))
			attrs.Group = group
			pair := netlink.NewVeth(attrs)
			pair.PeerName = fmt.Sprint("peer", i)
			addLink(t, pair)
			for _, name := range []string{pair.Name, pair.PeerName} {
				found, err := ResolveInterface(name, Ingress, "")
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, name)
				w.Add(found)
			}
		}
	})
	settle(w)
	run(t, w)
	expectAll(t, w, len(names), func(went map[string]time.Time) {
		host.Do(func() { deleteGroup(t, group) })
		for _, name := range names {
			went[name] = time.Now() // none is known to be gone before all are
		}
	})
}

// deleteGroup removes every interface of a group in one step (ip link delete group N).
func deleteGroup(t *testing.T, group uint32) {
	t.Helper()
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		t.Fatalf("delete group %d: %v", group, err)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		t.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
