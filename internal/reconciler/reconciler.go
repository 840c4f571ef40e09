// SPDX-License-Identifier: Apache-2.0

// Package reconciler brings the kernel to what package state desires.
//
// Every step is idempotent and begins with the latest desired state, so it does
// not matter where the daemon before this one stopped: after a start all is
// dirty, and all is done again. What fails is tried again with growing pauses,
// what the kernel refuses for good is reported back, and nothing here ever ends
// the filtering of an attachment that nobody asked to end.
package reconciler

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// Kernel is what the reconciler drives. Calls for different attachments come
// from different goroutines, calls for one never at the same time. Errors name
// what was done to which attachment.
type Kernel interface {
	// Attach filters t, closed until the first Replace. If the attachment is
	// there, it stays as it is.
	Attach(id string, t target.Target) error
	// Replace puts c in force in one step. It returns when it is; after an
	// error what was in force still is.
	Replace(id string, c *policy.Compiled) error
	// Detach ends the filter. If the attachment is not there, it is done.
	Detach(id string) error
	// IDs returns every attachment that the kernel holds.
	IDs() ([]string, error)
}

// Options of a Reconciler. The zero value is good.
type Options struct {
	Workers int     // attachments handled at a time; 0: 16, as most of an attach is waiting for RCU
	Backoff Backoff // zero: 100 ms to 30 s
	// Permanent tells errors that trying again would not change. Nil: none.
	Permanent func(error) bool
	// Vanished tells errors that mean that the target is gone. Nil: none.
	Vanished func(error) bool
	Log      *slog.Logger // nil: slog.Default
}

// Reconciler drives one kernel after one store.
type Reconciler struct {
	store  *state.Store
	kernel Kernel
	opts   Options
	log    *slog.Logger

	failed, refused atomic.Uint64

	mu       sync.Mutex
	orphans  []string            // found at the start of Run
	untried  map[string]struct{} // of what was desired then
	attached map[string]struct{} // by this reconciler; from then on the kernel's side watches
	caughtUp chan struct{}
}

// New returns a reconciler that does nothing until Run.
func New(store *state.Store, kernel Kernel, opts Options) *Reconciler {
	if opts.Workers == 0 {
		opts.Workers = 16
	}
	if opts.Backoff == (Backoff{}) {
		opts.Backoff = defaultBackoff
	}
	never := func(error) bool { return false }
	if opts.Permanent == nil {
		opts.Permanent = never
	}
	if opts.Vanished == nil {
		opts.Vanished = never
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	return &Reconciler{store: store, kernel: kernel, opts: opts, log: opts.Log, caughtUp: make(chan struct{})}
}

// Failures returns how many attempts failed that are made again, and how many
// policies were refused for good.
func (r *Reconciler) Failures() (failed, refused uint64) { return r.failed.Load(), r.refused.Load() }

// CaughtUp returns a channel that is closed once everything that was desired
// when Run began has been tried once: from then on the store knows what is in
// force in the kernel.
func (r *Reconciler) CaughtUp() <-chan struct{} { return r.caughtUp }

// begin notes what CaughtUp waits for.
func (r *Reconciler) begin(ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.untried = make(map[string]struct{}, len(ids))
	for _, id := range ids {
		r.untried[id] = struct{}{}
	}
	if len(ids) == 0 {
		close(r.caughtUp)
	}
}

func (r *Reconciler) tried(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, first := r.untried[id]; !first {
		return
	}
	if delete(r.untried, id); len(r.untried) == 0 {
		close(r.caughtUp)
	}
}

// Run works until ctx is done, finishes what it has begun and returns nil. The
// kernel goes on filtering as it is then.
func (r *Reconciler) Run(ctx context.Context) error {
	if err := r.findOrphans(); err != nil {
		return err
	}
	desired := r.store.TakeDirty()
	r.begin(desired)
	q := newQueue(r.opts.Backoff)
	q.add(desired...)
	var workers sync.WaitGroup
	for range r.opts.Workers {
		workers.Go(func() { r.work(q) })
	}
	defer workers.Wait()
	defer q.close()
	for {
		select {
		case <-r.store.Dirty():
			q.add(r.store.TakeDirty()...)
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *Reconciler) work(q *queue) {
	for {
		id, ok := q.next()
		if !ok {
			return
		}
		err := r.reconcile(id)
		if failures := q.done(id, err); failures == 1 { // later ones are in the status
			r.log.Warn("kernel not as desired, trying again", "attachment", id, "err", err)
		}
		r.tried(id)
	}
}

// reconcile does what there is to do for one attachment. An error means that it
// is to be tried again.
func (r *Reconciler) reconcile(id string) error {
	d, err := r.store.Desired(id)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err == nil {
		if d.Removing {
			err = r.remove(d)
		} else {
			err = r.update(d)
		}
	}
	if err != nil {
		r.failed.Add(1)
		r.store.Failed(d, err)
	}
	return err
}

func (r *Reconciler) remove(d state.Desired) error {
	r.note(d.ID, false)
	if err := r.kernel.Detach(d.ID); err != nil {
		return err
	}
	return r.store.Removed(d)
}

// attach is done once, and again after a failure: to look at every link with every
// policy would take longer than the policy.
func (r *Reconciler) attach(d state.Desired) error {
	r.mu.Lock()
	_, done := r.attached[d.ID]
	r.mu.Unlock()
	if done {
		return nil
	}
	return r.kernel.Attach(d.ID, d.Target)
}

func (r *Reconciler) note(id string, attached bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !attached {
		delete(r.attached, id)
		return
	}
	if r.attached == nil {
		r.attached = make(map[string]struct{})
	}
	r.attached[id] = struct{}{}
}

func (r *Reconciler) update(d state.Desired) error {
	err := r.attach(d)
	if err == nil {
		err = r.kernel.Replace(d.ID, d.Compiled)
	}
	r.note(d.ID, err == nil)
	switch {
	case err == nil:
		return r.store.InForce(d)
	case r.opts.Vanished(err):
		r.log.Info("target is gone, attachment ends", "attachment", d.ID, "target", d.Target, "err", err)
		_, removeErr := r.store.Remove(d.ID, state.ReasonRemoved, err.Error())
		if errors.Is(removeErr, state.ErrNotFound) {
			return nil
		}
		return removeErr
	case r.opts.Permanent(err):
		back, storeErr := r.store.Refused(d, err)
		if storeErr != nil || !back {
			return errors.Join(err, storeErr)
		}
		r.refused.Add(1)
		r.log.Warn("policy refused by the kernel, what was in force stays",
			"attachment", d.ID, "target", d.Target, "revision", d.Revision, "err", err)
		return nil
	}
	return err
}
