// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

func newWatcher(t *testing.T) *Watcher {
	t.Helper()
	w, err := NewWatcher(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return w
}

// run runs w until the test ends, and sees it leave nothing.
func run(t *testing.T, w *Watcher) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		goleak.VerifyNone(t, before)
		if !t.Failed() && (len(w.parents) != 0 && len(w.watched) == 0) {
			t.Errorf("%d inotify watches for no cgroup", len(w.parents))
		}
	})
}

func watchAll(t *testing.T) *Watcher {
	t.Helper()
	w := newWatcher(t)
	run(t, w)
	return w
}

// expect takes the next event. How soon events come is for TestMany* to tell.
func expect(t *testing.T, w *Watcher, kind EventKind, want Target) Target {
	t.Helper()
	select {
	case e := <-w.Events():
		if e.Kind != kind || !e.Target.Same(want) {
			t.Fatalf("%s %s, want %s %s", e.Target, e.Kind, want, kind)
		}
		return e.Target
	case <-time.After(testenv.Patience):
		t.Fatalf("%s %s was not noticed", want, kind)
	}
	panic("unreachable")
}

func resolveCgroup(t *testing.T, path string) Target {
	t.Helper()
	got, err := ResolveCgroup(path)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// settle has everything that was added looked at, as Run would, so that a test
// shows what the kernel's messages alone are good for.
func settle(w *Watcher) { w.sweep(w.takeDoubtful()) }

func TestWatchCgroups(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := newWatcher(t)
	outer := testenv.NewCgroup(t)
	var groups []*testenv.Cgroup
	var targets []Target
	for i := range 20 {
		groups = append(groups, outer.Child(t, fmt.Sprint("c", i)))
		targets = append(targets, resolveCgroup(t, groups[i].Path))
		w.Add(targets[i])
	}
	settle(w)
	run(t, w)
	for i, g := range groups {
		g.Remove(t)
		expect(t, w, Removed, targets[i])
	}
}

func TestWatchCgroupTree(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := newWatcher(t)
	outer := testenv.NewCgroup(t)
	inner := outer.Child(t, "inner")
	want := map[Target]bool{resolveCgroup(t, outer.Path): true, resolveCgroup(t, inner.Path): true}
	for target := range want {
		w.Add(target)
	}
	settle(w)
	run(t, w)
	outer.Remove(t)
	for range 2 {
		e := <-w.Events()
		if e.Kind != Removed || !want[e.Target] {
			t.Errorf("%s %s", e.Target, e.Kind)
		}
		delete(want, e.Target)
	}
}

// The watched path is taken by another cgroup, with the same watch on the parent,
// before anyone reads what inotify has to say of the first.
func TestWatchRecreatedCgroup(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := newWatcher(t)
	cg := testenv.NewCgroup(t).Child(t, "inner")
	first := resolveCgroup(t, cg.Path)
	w.Add(first)
	settle(w)
	cg.Remove(t)
	if err := os.Mkdir(cg.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	second := resolveCgroup(t, cg.Path)
	w.Add(second)
	run(t, w)
	expect(t, w, Removed, first)
	cg.Remove(t)
	expect(t, w, Removed, second)
}

func TestWatchWhatIsGoneAlready(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := watchAll(t)
	cg := testenv.NewCgroup(t).Child(t, "inner")
	gone := resolveCgroup(t, cg.Path)
	cg.Remove(t)
	w.Add(gone)
	expect(t, w, Removed, gone)
}

func TestRemovedTargetsAreNotReported(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := watchAll(t)
	outer := testenv.NewCgroup(t)
	quiet, loud := outer.Child(t, "quiet"), outer.Child(t, "loud")
	q, l := resolveCgroup(t, quiet.Path), resolveCgroup(t, loud.Path)
	w.Add(q)
	w.Add(l)
	w.Remove(q)
	quiet.Remove(t)
	loud.Remove(t)
	expect(t, w, Removed, l)
}

// Nothing is lost when nobody takes events for a while.
func TestSlowReader(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := watchAll(t)
	outer := testenv.NewCgroup(t)
	want := map[Target]bool{}
	var groups []*testenv.Cgroup
	for i := range 100 {
		cg := outer.Child(t, fmt.Sprint("c", i))
		target := resolveCgroup(t, cg.Path)
		w.Add(target)
		groups, want[target] = append(groups, cg), true
	}
	for _, cg := range groups {
		cg.Remove(t)
	}
	testenv.Eventually(t, "every removal is pending", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.pending) == len(want)
	})
	for len(want) > 0 {
		e := <-w.Events()
		if e.Kind != Removed || !want[e.Target] {
			t.Fatalf("%s %s", e.Target, e.Kind)
		}
		delete(want, e.Target)
	}
}

func TestLostInotifyEvents(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := newWatcher(t)
	cg := testenv.NewCgroup(t)
	target := resolveCgroup(t, cg.Path)
	w.Add(target)
	settle(w)
	loseWatch(w, target)
	w.watched[target.key()].wd = -1 // not even blind
	cg.Remove(t)

	overflow := make([]byte, unix.SizeofInotifyEvent)
	binary.NativeEndian.PutUint32(overflow[0:], ^uint32(0)) // wd -1
	binary.NativeEndian.PutUint32(overflow[4:], unix.IN_Q_OVERFLOW)
	w.cgroupMessages(overflow)
	run(t, w)
	expect(t, w, Removed, target)
}

// A cgroup that inotify has no room for is polled.
func TestBlindCgroup(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := newWatcher(t)
	cg := testenv.NewCgroup(t)
	target := resolveCgroup(t, cg.Path)
	w.Add(target)
	settle(w)
	loseWatch(w, target)
	run(t, w)
	cg.Remove(t)
	expect(t, w, Removed, target)
}

func loseWatch(w *Watcher, target Target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.watched[target.key()]
	w.unwatchParent(e)
	e.wd = 0
}
