// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// EventKind says what happened to a watched target. The zero value is none.
type EventKind uint8

const (
	// Removed: the object is gone. An interface that moved to another network
	// namespace, or was deleted and created again under the same name, is gone.
	// The target is not watched any more.
	Removed EventKind = 1
	// Renamed: the same interface has another name.
	Renamed EventKind = 2
	// Doubtful: a default route leaves by the interface now, so that its direction
	// would not follow from its kind any more. It is told once for as long as that
	// lasts, and the interface stays as it is.
	Doubtful EventKind = 3
)

func (k EventKind) String() string {
	return enumName("EventKind", []string{"", "removed", "renamed", "doubtful"}, uint8(k))
}

// Event is a change of a watched target: as it was last seen if it was removed,
// else as it is now.
type Event struct {
	Kind   EventKind
	Target Target
}

const (
	// fullSweep is how often everything is looked at, should an event have been
	// lost without a word.
	fullSweep = 30 * time.Second
	// blindSweep is how often those cgroups are looked at that inotify could not
	// take; a removal has to be noticed within a second.
	blindSweep = 500 * time.Millisecond
	// routeSweep is how soon after a change the default routes are looked at: not for
	// each message, because a router changes many at once.
	routeSweep = 500 * time.Millisecond
)

// Watcher reports the removal of targets. It costs three file descriptors for any
// number of them: two rtnetlink subscriptions and one inotify instance, which
// watches the parents of the cgroups, because cgroupfs never reports the removal
// of a directory to a watch on the directory itself.
type Watcher struct {
	log     *slog.Logger
	events  chan Event
	links   *News           // RTNLGRP_LINK of the namespace that NewWatcher ran in
	routes  *News           // RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE likewise
	look    *netlink.Handle // for requests, in that namespace too; used by Run only
	cookie  uint64          // of that namespace
	inotify *os.File
	// wake tells Run that pending, lost or doubtful changed.
	wake chan struct{}

	// mu guards what follows.
	mu      sync.Mutex
	watched map[key]*watched
	paths   map[string]key    // cgroups by path
	indexes map[int]key       // interfaces by index
	parents map[int32]*parent // by inotify watch descriptor
	// pending holds what the reader of events has not taken yet, the latest for
	// each target, so that neither memory nor facts are lost if it is slow. order
	// is that of what came; some of it may have been taken back.
	pending map[key]Event
	order   []key
	// doubtful are those that Run has to look at.
	doubtful map[key]bool
	lost     bool // messages, by the kernel: all are doubtful
	rerouted bool // a default route may have come or gone
	closed   bool
}

type watched struct {
	target Target
	wd     int32 // of the cgroup's parent; 0 (inotify numbers from 1): blind
	uplink bool  // a default route leaves by it
}

// parent is a directory that inotify watches for the sake of n cgroups in it.
type parent struct {
	path string
	n    int
}

// NewWatcher opens a Watcher for the network namespace of the calling thread.
// Nothing is watched before Run.
func NewWatcher(log *slog.Logger) (*Watcher, error) {
	cookie, err := NetnsCookie()
	if err != nil {
		return nil, fmt.Errorf("watch targets: %w", err)
	}
	w := &Watcher{
		log: log, cookie: cookie,
		events: make(chan Event), wake: make(chan struct{}, 1),
		watched: map[key]*watched{}, paths: map[string]key{}, indexes: map[int]key{},
		parents: map[int32]*parent{}, pending: map[key]Event{}, doubtful: map[key]bool{},
		rerouted: true,
	}
	if w.links, err = OpenNews(unix.RTMGRP_LINK); err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	if w.routes, err = OpenNews(unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("watch default routes: %w", err), w.Close())
	}
	if w.look, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("watch interfaces: %w", err), w.Close())
	}
	if w.inotify, err = openInotify(); err != nil {
		return nil, errors.Join(fmt.Errorf("watch cgroups: %w", err), w.Close())
	}
	return w, nil
}

// Close releases the file descriptors, and thereby ends a Run in progress.
func (w *Watcher) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	var errs []error
	for _, n := range []*News{w.links, w.routes} {
		if n != nil {
			errs = append(errs, n.Close())
		}
	}
	if w.inotify != nil {
		errs = append(errs, w.inotify.Close())
	}
	if w.look != nil {
		w.look.Close()
	}
	return errors.Join(errs...)
}

// Events returns the channel of events. Run closes it when it returns.
func (w *Watcher) Events() <-chan Event { return w.events }

// Add begins to watch t. If t is gone already its removal is reported like any
// other, so that nothing can slip in between ResolveInterface or ResolveCgroup
// and Add.
func (w *Watcher) Add(t Target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := t.key()
	w.forget(k)
	e := &watched{target: t}
	w.watched[k] = e
	// A predecessor of that path or index has surely gone, but the message that
	// says so may still be on its way and would be taken for one about t.
	if t.Type == Cgroup {
		w.doubtful[w.paths[t.Name]] = true
		w.paths[t.Name] = k
		if err := w.watchParent(e); err != nil {
			w.log.Warn("cgroup is not watched, only polled", "cgroup", t.Name, "err", err)
		}
	} else {
		w.doubtful[w.indexes[t.Ifindex]] = true
		w.indexes[t.Ifindex] = k
		w.rerouted = true
	}
	w.doubtful[k] = true
	w.signal()
}

// Remove stops to watch t. No event for it is sent after Remove returned, other
// than one that the reader is taking at this moment.
func (w *Watcher) Remove(t Target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(t.key())
	delete(w.pending, t.key())
}

// Run watches until ctx is done, closes the Watcher and the channel of events and
// returns nil, or the error that made watching impossible.
func (w *Watcher) Run(ctx context.Context) error {
	defer close(w.events)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	for _, read := range []func() error{w.readLinks, w.readRoutes, w.readCgroups} {
		group.Go(func() error {
			defer cancel() // one of them alone would miss removals
			return read()
		})
	}
	w.deliver(ctx)
	return errors.Join(w.Close(), group.Wait()) // Close ends the readers
}

// deliver sends events and looks where the kernel's messages say nothing.
func (w *Watcher) deliver(ctx context.Context) {
	full, blind, routes := time.NewTicker(fullSweep), time.NewTicker(blindSweep), time.NewTicker(routeSweep)
	defer full.Stop()
	defer blind.Stop()
	defer routes.Stop()
	for {
		next, ok := w.next()
		out := w.events
		if !ok {
			out = nil
		}
		select {
		case <-ctx.Done():
			return
		case out <- next:
			w.delivered(next)
		case <-w.wake:
			w.sweep(w.takeDoubtful())
		case <-full.C:
			w.sweep(w.all())
		case <-blind.C:
			w.sweep(w.blind())
		case <-routes.C:
			w.lookAtRoutes()
		}
	}
}

func (w *Watcher) next() (Event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.order) > 0 {
		if e, ok := w.pending[w.order[0]]; ok {
			return e, true
		}
		w.order = w.order[1:]
	}
	return Event{}, false
}

func (w *Watcher) delivered(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := e.Target.key(); w.pending[k] == e { // else a later one took its place
		delete(w.pending, k)
	}
}

// takeDoubtful returns what has to be looked at.
func (w *Watcher) takeDoubtful() []Target {
	w.mu.Lock()
	defer w.mu.Unlock()
	var doubtful []Target
	if w.lost {
		doubtful = w.collect(func(key, *watched) bool { return true })
	} else {
		for k := range w.doubtful { // and not all: each Add comes here
			if e := w.watched[k]; e != nil {
				doubtful = append(doubtful, e.target)
			}
		}
	}
	w.lost = false
	clear(w.doubtful)
	return doubtful
}

func (w *Watcher) all() []Target {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.collect(func(key, *watched) bool { return true })
}

// blind returns the cgroups without an inotify watch, having tried again.
func (w *Watcher) blind() []Target {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.collect(func(_ key, e *watched) bool {
		if e.target.Type != Cgroup || e.wd != 0 {
			return false
		}
		_ = w.watchParent(e) // Add has said why not
		return true
	})
}

func (w *Watcher) collect(want func(key, *watched) bool) []Target {
	var targets []Target
	for k, e := range w.watched {
		if want(k, e) {
			targets = append(targets, e.target)
		}
	}
	return targets
}

// sweep looks at each target and reports what changed.
func (w *Watcher) sweep(targets []Target) {
	for _, t := range targets {
		now, err := w.current(t)
		var gone *NotFoundError
		switch {
		case errors.As(err, &gone):
			w.removed(t.key())
		case err != nil:
			// It stays watched, and the next sweep looks again.
			w.log.Warn("target could not be looked at", "target", t, "err", err)
		default:
			w.seen(now)
		}
	}
}

// current is Current with the Watcher's own netlink socket, for Run may be on any
// thread.
func (w *Watcher) current(t Target) (Target, error) {
	if t.Type == Interface {
		return lookInterface(w.look, w.cookie, t)
	}
	return Current(t)
}

// removed reports that the target is gone and forgets it.
func (w *Watcher) removed(k key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, ok := w.watched[k]; ok {
		w.report(k, Event{Removed, e.target})
		w.forget(k)
		w.signal()
	}
}

// seen reports a rename, if now has another name than before.
func (w *Watcher) seen(now Target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := now.key()
	e, ok := w.watched[k]
	if !ok || e.target.Name == now.Name {
		return
	}
	now.Direction, now.Directed = e.target.Direction, e.target.Directed
	e.target = now
	w.report(k, Event{Renamed, now})
	w.signal()
}

// report has the event delivered, in place of one that nobody has taken. mu is held.
func (w *Watcher) report(k key, e Event) {
	if before, ok := w.pending[k]; !ok {
		w.order = append(w.order, k)
	} else if before.Kind == Doubtful { // told once more, should it still be there
		w.rerouted, w.watched[k].uplink = true, false
	}
	w.pending[k] = e
}

// forget drops a target from every index. mu is held.
func (w *Watcher) forget(k key) {
	e, ok := w.watched[k]
	if !ok {
		return
	}
	delete(w.watched, k)
	delete(w.doubtful, k)
	// A successor may have the same path already.
	if w.paths[e.target.Name] == k {
		delete(w.paths, e.target.Name)
	}
	if w.indexes[e.target.Ifindex] == k {
		delete(w.indexes, e.target.Ifindex)
	}
	w.unwatchParent(e)
}

func (w *Watcher) messagesLost() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = true
	w.signal()
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // Run has not taken the last one yet
	}
}
