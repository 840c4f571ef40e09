// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"fmt"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

// waiter is shared by every Subscribe of one attachment. done is closed once outcome stands.
type waiter struct {
	users   int // guarded by Client.mu, as is the place in Client.waiters
	done    chan struct{}
	outcome outcome
}

// outcome of an acknowledgement: a revision to wait for, or why it was refused.
type outcome struct {
	revision state.Revision
	err      error
}

// Subscribe announces the pending attachment id to the control plane, and returns when the policy that
// it acknowledges is in force in the kernel. With an AckTimeout of 0, or UnreachablePending and nobody to
// ask, it returns at once, and the attachment stays pending and closed until it is acknowledged.
//
// The errors are *UnavailableError, *TimeoutError, *RefusedError, ctx's, or state's when the attachment
// went away. After any of them the caller removes the attachment, which also tells the control plane.
func (c *Client) Subscribe(ctx context.Context, id string) error {
	if c.opts.Ready != nil {
		if err := c.opts.Ready(); err != nil {
			return &RefusedError{Cause: err}
		}
	}
	w := c.join(id)
	defer c.leave(id, w)
	a, _, err := c.opts.Store.Get(id)
	if err != nil {
		return fmt.Errorf("attachment %s: %w", id, err)
	}
	if a.Removing != state.ReasonNone {
		return fmt.Errorf("attachment %s: %w", id, state.ErrNotFound)
	}
	if !a.Pending {
		return c.await(ctx, id, outcome{revision: a.Revision})
	}
	c.announce(id)
	start := c.currentLink()
	if c.opts.AckTimeout == 0 {
		if start.state == Disconnected {
			return c.unreachable(ctx, id, start)
		}
		return nil
	}
	timeout := &TimeoutError{Address: c.currentLink().address, After: c.opts.AckTimeout}
	// Counted from here, as good as from the first send, and not begun anew when the stream breaks.
	limited, cancel := context.WithTimeoutCause(ctx, c.opts.AckTimeout, timeout)
	defer cancel()

	for l := start; ; l = c.currentLink() {
		// Asked means: a stream stood at some time since, so the announcement went out on it.
		asked := l.state == Connected || l.ups != start.ups || start.state == Connected
		if l.state == Disconnected && !asked {
			return c.unreachable(ctx, id, l)
		}
		select {
		case <-w.done:
			return c.await(limited, id, w.outcome)
		case <-l.changed:
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !asked {
				return c.unreachable(ctx, id, l)
			}
			return timeout
		}
	}
}

// unreachable is the answer to an attach when nobody can be asked.
func (c *Client) unreachable(ctx context.Context, id string, l link) error {
	failed := &UnavailableError{Address: l.address, Cause: l.err}
	switch c.opts.WhenUnreachable {
	case UnreachablePending:
		return nil
	case UnreachableCached:
		p, err := c.cached(id)
		switch {
		case err != nil:
			return fmt.Errorf("%w; %w", failed, err)
		case p == nil:
			return failed
		}
		// The control plane may be back by now and have given another: that one stays.
		revision, err := c.opts.Store.Apply(id, "cache", state.Change{Edit: state.Replace(p), Acknowledge: true, First: true})
		return c.await(ctx, id, outcome{revision, err})
	default:
		return failed
	}
}

// cached is the last policy of the attachment's key; nil: none is known.
func (c *Client) cached(id string) (*policy.Policy, error) {
	a, _, err := c.opts.Store.Get(id)
	if err != nil || a.Key == "" {
		return nil, err
	}
	p, err := c.opts.Cached(a.Key)
	if p != nil {
		c.log.Warn("attached with the last policy of its key: the control plane is not there", "attachment", id, "key", clip(a.Key))
	}
	return p, err
}

// await waits until an acknowledged policy is in force.
func (c *Client) await(ctx context.Context, id string, o outcome) error {
	err := o.err
	if err == nil {
		err = c.opts.Store.Wait(ctx, id, o.revision)
	}
	var refused *state.RefusedError
	switch {
	case o.err != nil && !errors.Is(err, state.ErrNotFound):
		return &RefusedError{Cause: err}
	case errors.As(err, &refused):
		return &RefusedError{Cause: err}
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("attachment %s: %w", id, err)
	}
	return nil
}

// join registers before the attachment is looked at, so that no acknowledgement falls between.
func (c *Client) join(id string) *waiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiters[id]
	if w == nil {
		w = &waiter{done: make(chan struct{})}
		c.waiters[id] = w
	}
	w.users++
	return w
}

func (c *Client) leave(id string, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.users--; w.users == 0 && c.waiters[id] == w {
		delete(c.waiters, id)
	}
}

// waiting tells whether a Subscribe waits for id.
func (c *Client) waiting(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiters[id] != nil
}

// settle gives the outcome of id's acknowledgement to whoever waits for it.
func (c *Client) settle(id string, o outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiters[id]; w != nil {
		delete(c.waiters, id)
		w.outcome = o
		close(w.done)
	}
}

// Announce tells the control plane of an attachment again, of which something other than its policy has changed.
func (c *Client) Announce(id string) { c.announce(id) }

// announce asks the open stream, if there is one, to tell of id. A later stream begins by telling all.
func (c *Client) announce(id string) {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s != nil {
		s.announce(id)
	}
}
