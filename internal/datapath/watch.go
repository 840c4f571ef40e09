// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/target"
)

const (
	// At each watchInterval watchBatch attachments are looked at, or so many that a round
	// of all takes watchRound intervals. An interface takes some 10 µs,
	// a cgroup 30.
	watchInterval = time.Second
	watchBatch    = 250
	watchRound    = 10

	// leadLimit is how often in leadPeriod an attachment's program is put before
	// others again: two tools that both insist on being first must not fight for ever.
	leadLimit  = 5
	leadPeriod = 10 * time.Minute
)

// errBehind says that another program runs before ours.
var errBehind = errors.New("another program runs first")

// Kinds of incidents.
const (
	incidentLost   = "links_lost"
	incidentBehind = "hook_order"
)

// leads counts, for leadLimit.
type leads struct {
	n     int
	since time.Time
}

func (l *leads) allow(now time.Time) bool {
	if now.Sub(l.since) > leadPeriod {
		*l = leads{since: now}
	}
	l.n++
	return l.n <= leadLimit
}

// Watch looks, until ctx is done, whether attachments are still held as they were left:
// that the programs are there, and nobody's before them. What was taken away it puts
// back. vanished is told of attachments whose target is gone, again and again until
// they are detached; nil: they are detached. It begins when those that are to stay have
// been attached: of others only the kernel's word is known. What becomes of filters the
// kernel tells at once.
func (d *Datapath) Watch(ctx context.Context, vanished func(id string, err error)) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	changes, err := d.filterChanges(ctx)
	netns, noCookie := target.NetnsCookie()
	if err := errors.Join(err, noCookie); err != nil {
		d.log.Warn("filters are looked at in turn only", "err", err)
	}
	next, turn := uint32(1), 0
	for {
		d.mu.Lock()
		n := max(watchBatch, (len(d.known)+watchRound-1)/watchRound)
		d.mu.Unlock()
		for ; n > 0 && next < maxAttachments; next++ {
			if a := d.byIndex[next].Load(); a != nil {
				d.look(a, turn, vanished)
				n--
			}
		}
		if next == maxAttachments {
			next, turn = 1, turn+1
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				for changes != nil {
					if _, ok := <-changes; !ok {
						changes = nil
					}
				}
				return
			case ifindex, ok := <-changes:
				if !ok {
					changes = nil
					continue
				}
				d.lookAtDevice(netns, ifindex, vanished)
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// look checks the verdict, and one other hook at each turn: without one of those
// less is let through, not more.
func (d *Datapath) look(a *attachment, turn int, vanished func(string, error)) {
	if a.mu.TryLock() { // else somebody is at it
		d.lookLocked(a, turn, vanished)
	}
}

// lookLocked unlocks a.mu.
func (d *Datapath) lookLocked(a *attachment, turn int, vanished func(string, error)) {
	id := uuid.UUID(a.record.Id).String()
	err := d.inspect(a, id, turn)
	a.mu.Unlock()
	if err == nil {
		return
	}
	if vanished != nil {
		vanished(id, err)
		return
	}
	d.log.Info("target is gone, attachment ends", "attachment", id, "err", err)
	if err := d.Detach(id); err != nil {
		d.log.Warn("attachment without a target not removed", "attachment", id, "err", err)
	}
}

// inspect returns ErrVanished if the target is gone. The caller holds a.mu.
func (d *Datapath) inspect(a *attachment, id string, turn int) error {
	if a.gone {
		return nil
	}
	_ = d.renew(a) // status says what stands in its way, and there is another turn
	dir, hooks := d.pins.attached(id), d.hooks(a.record)
	fine := true
	err := at(a.record, func(on int) error {
		for _, h := range []hook{hooks[0], hooks[1+turn%(len(hooks)-1)]} {
			switch err := h.by.watch(h, dir, a.record, on); {
			case err == nil:
				d.problems.over(problem(id, h))
			case errors.Is(err, errBehind):
				d.takeLead(a, id, h)
			case errors.Is(err, ErrVanished), errors.Is(err, errForeign), errors.Is(err, fs.ErrNotExist):
				fine = false
			default:
				d.log.Debug("hook not looked at", "attachment", id, "hook", h.name, "err", err)
			}
		}
		return nil
	})
	if errors.Is(err, ErrVanished) {
		fine = false
	} else if err != nil {
		d.log.Debug("hooks not looked at", "attachment", id, "err", err)
	}
	if fine {
		a.intact = time.Now()
		return nil
	}
	a.held = false
	return d.regain(a, id, hooks)
}

func problem(id string, h hook) string { return id + "/" + h.name }

// regain puts back what somebody took away. The caller holds a.mu.
func (d *Datapath) regain(a *attachment, id string, hooks []hook) error {
	gone, dead, err := lost(hooks, d.pins.attached(id), a.record)
	switch {
	case err != nil:
		d.log.Warn("links not looked at", "attachment", id, "err", err)
		return nil
	case dead && !alive(a.record, a.target):
		return ErrVanished
	case len(gone) == 0 || a.target.Type == 0:
		return nil // nobody has said yet where it is; Attach will, and puts it back
	}
	err = d.putBack(a, id, gone)
	if errors.Is(err, ErrVanished) {
		return err
	}
	names := make([]string, len(gone))
	for i, h := range gone {
		names[i] = h.name
	}
	text := fmt.Sprintf("%s was taken away from %s %s", strings.Join(names, ", "), a.target.Type, a.target.Name)
	if gone[0].name == verdictHook {
		text += fmt.Sprintf(", which was not filtered for up to %s", time.Since(a.intact).Round(time.Millisecond))
	}
	if err != nil {
		d.problems.note(problem(id, gone[0]), fmt.Sprintf("attachment %s: %s, and is not back: %v", id, text, err))
		return nil
	}
	a.intact = time.Now()
	d.tell(id, incidentLost, text+"; it is back")
	return nil
}

// takeLead puts a program of ours before others again. The caller holds a.mu.
func (d *Datapath) takeLead(a *attachment, id string, h hook) {
	where := fmt.Sprintf("%s %s, %s", a.target.Type, a.target.Name, h.name)
	l, can := h.by.(leader)
	if !can || !a.leads.allow(time.Now()) {
		d.problems.note(problem(id, h), fmt.Sprintf("attachment %s: another program runs before Netfence's (%s): "+
			"what it passes on or redirects is not filtered; it came back %d times", id, where, leadLimit))
		return
	}
	if err := d.lead(l, h, a.record, id); err != nil {
		d.problems.note(problem(id, h), fmt.Sprintf("attachment %s: another program runs before Netfence's (%s): %v", id, where, err))
		return
	}
	d.tell(id, incidentBehind, fmt.Sprintf("another program ran before Netfence's (%s); it comes after it now", where))
}

// alive is true if the target is there, held or not.
func alive(r bpfAttachment, t target.Target) bool {
	switch t.Type {
	case target.Interface:
		return hasInterface(int(r.Ifindex))
	case target.Cgroup:
		now, err := target.ResolveCgroup(t.Name)
		return err == nil && now.CgroupID == r.Scope
	}
	return false // nobody has said where it was
}

// tell logs an incident and hands it to who listens.
func (d *Datapath) tell(id, kind, text string) {
	d.log.Error("not as it was left", "attachment", id, "incident", kind, "what", text)
	if d.config.Events != nil {
		d.config.Events(events.Event{Time: time.Now(), Attachment: id, Incident: &events.Incident{Kind: kind, Message: text}})
	}
}
