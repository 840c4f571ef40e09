// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
)

// targets keeps the watcher at what the store holds, and tells the store what became of it.
type targets struct {
	store   *state.Store
	watcher *target.Watcher
	events  func(events.Event) // must not block
	log     *slog.Logger
	watched map[string]target.Target // by attachment id, as handed to the watcher
}

// run ends with ctx, or with an error when nothing can be watched any more.
func (t *targets) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- t.watcher.Run(ctx) }()
	for {
		select {
		case <-t.store.Moved():
			t.follow(t.store.TakeMoved())
		case event, ok := <-t.watcher.Events():
			if !ok {
				return <-failed
			}
			if err := t.report(event); err != nil {
				cancel()
				for range t.watcher.Events() { // until Run has closed it
				}
				return errors.Join(err, <-failed)
			}
		}
	}
}

// follow removes what is gone, then adds what was attached: a target that was detached and attached again has two ids
// and is one object to the watcher. It looks at what moved alone, or ten thousand attaches would each look at all.
func (t *targets) follow(moved []string) {
	var came []state.Attachment
	for _, id := range moved {
		a, _, err := t.store.Get(id)
		if err == nil && a.Removing == state.ReasonNone {
			came = append(came, a)
			continue
		}
		if watched, ok := t.watched[id]; ok {
			t.watcher.Remove(watched)
			delete(t.watched, id)
		}
	}
	for _, a := range came {
		if _, ok := t.watched[a.ID]; ok {
			continue // the watcher follows renames by itself
		}
		t.watcher.Add(a.Target)
		t.watched[a.ID] = a.Target
	}
}

// report finds the attachment of an event's target. One that was detached meanwhile is nobody's.
func (t *targets) report(event target.Event) error {
	a, ok := t.store.ByTarget(event.Target)
	if !ok || a.Removing != state.ReasonNone {
		return nil
	}
	var err error
	switch event.Kind {
	case target.Removed:
		t.log.Info("target vanished", "attachment", a.ID, "target", event.Target)
		_, err = t.store.Remove(a.ID, state.ReasonRemoved, fmt.Sprintf("%s vanished", event.Target))
	case target.Doubtful:
		const what = "a default route leaves by the interface now: if this host sends by it, its packets are not filtered " +
			"(detach, and attach with --direction)"
		t.log.Error("direction in doubt", "attachment", a.ID, "target", event.Target, "direction", event.Target.Direction, "what", what)
		t.events(events.Event{Time: time.Now(), Attachment: a.ID, Incident: &events.Incident{Kind: "direction", Message: what}})
	case target.Renamed:
		t.log.Info("target renamed", "attachment", a.ID, "from", a.Target, "to", event.Target)
		err = t.store.SetTarget(a.ID, event.Target)
	}
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	return err
}

// watchAttachments ends what the kernel no longer holds on any target, also if the state does not know it.
func (d *daemon) watchAttachments(ctx context.Context) error {
	d.kernel.Watch(ctx, func(id string, cause error) {
		_, err := d.store.Remove(id, state.ReasonRemoved, cause.Error())
		if errors.Is(err, state.ErrNotFound) {
			err = d.kernel.Detach(id)
		}
		if err != nil {
			d.log.Warn("attachment without a target not removed", "attachment", id, "err", err)
			return
		}
		d.log.Info("target vanished", "attachment", id, "err", cause)
	})
	return nil
}
