// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"

	"github.com/netfence/netfence/policy"
)

// decide asks the user about an attachment.
func (d *daemon) decide(ctx context.Context, s *stream, a *attachment) {
	c := d.plane
	d.mu.Lock()
	if d.stream != s || a.gone {
		d.mu.Unlock()
		return
	}
	// Before the question, and together with due: what is decided counts for all that was asked until now.
	asked := c.sequence.Load()
	a.due = false
	view := d.view(a)
	d.mu.Unlock()

	p, err := c.policy(ctx, view)
	var doc *document
	var refused *Refusal
	if err == nil && p != nil {
		var invalid error
		if doc, invalid = c.documents.document(p); invalid != nil {
			r := refusal(invalid)
			refused = &r
		}
	}
	d.mu.Lock()
	if d.stream != s || a.gone {
		d.mu.Unlock()
		return
	}
	a.asked = asked
	switch {
	case doc != nil:
		a.decided = true
		d.wants(a, doc)
		d.queue(a)
	case refused != nil:
		d.settle(a, Refused, refused.String())
	case err != nil:
		d.settle(a, Undecided, err.Error())
	default:
		d.settle(a, Undecided, "")
	}
	d.mu.Unlock()
	if err != nil {
		c.log.Warn("no decision; the attachment keeps what it has", "daemon", d.id, "attachment", a.id(), "err", err)
	}
	if refused != nil {
		c.refused(view, *refused)
	}
}

// policy is what the user says.
func (c *ControlPlane) policy(ctx context.Context, a Attachment) (*policy.Policy, error) {
	c.mu.RLock()
	own := c.own[a.ID]
	c.mu.RUnlock()
	if own != nil || c.opts.Policy == nil {
		return own, nil
	}
	return c.opts.Policy(ctx, a)
}

// refused tells the user, or the log, of a decision that did not come into force.
func (c *ControlPlane) refused(a Attachment, r Refusal) {
	if f := c.opts.OnRefused; f != nil {
		f(a, r)
		return
	}
	c.log.Warn("policy refused; the attachment keeps what it has",
		"daemon", a.DaemonID, "attachment", a.ID, "revision", r.Revision, "reason", r.String())
}
