// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"strings"

	"github.com/netfence/netfence/policy"
)

// Status is what became of a decision for an attachment.
type Status uint8

// Waiting is until the daemon has answered. Sent is all that is ever known of a daemon that tells no results: one that
// knows only the published protocol. Undecided: Options.Policy gave an error, or nothing.
const (
	Waiting Status = iota
	Applied        // in force in the kernel
	Refused        // by the daemon, or here because the daemon would not understand it; what was in force still is
	Sent
	Undecided
	Disconnected // the daemon has no stream; it will be told when it comes back
	Gone         // detached meanwhile
)

func (s Status) String() string {
	switch s {
	case Applied:
		return "applied"
	case Refused:
		return "refused"
	case Sent:
		return "sent"
	case Undecided:
		return "undecided"
	case Disconnected:
		return "disconnected"
	case Gone:
		return "gone"
	default:
		return "waiting"
	}
}

// Refusal says why a decision did not come into force. It is not tried again until the decision is another one, or the
// daemon reconnects.
type Refusal struct {
	Revision   string // of the policy that was refused
	Violations []Violation
}

// Violation is one reason to refuse a policy.
type Violation struct {
	Field    string // path of the field in the protocol: "bulk_update.allow_cidrs[3].cidr"
	Value    string // as it was sent, cut to 256 bytes
	Expected string // what would have been accepted
}

// String shows the first violation.
func (r Refusal) String() string {
	if len(r.Violations) == 0 {
		return "refused"
	}
	v := r.Violations[0]
	var text strings.Builder
	if v.Field != "" {
		text.WriteString(v.Field + ": ")
	}
	if v.Value != "" {
		fmt.Fprintf(&text, "got %q, want ", v.Value)
	}
	text.WriteString(v.Expected)
	if more := len(r.Violations) - 1; more > 0 {
		fmt.Fprintf(&text, " (and %d more)", more)
	}
	return text.String()
}

// Change is a Refresh or Set whose outcome may be waited for. The zero value is one that concerns nothing.
type Change struct {
	sequence uint64
	members  []members
}

// members are the attachments of one daemon that a change is about.
type members struct {
	daemon      *daemon
	attachments []*attachment
}

// Len is how many attachments the change is about.
func (c Change) Len() int {
	n := 0
	for _, m := range c.members {
		n += len(m.attachments)
	}
	return n
}

// Outcome counts what became of the attachments of a change.
type Outcome struct {
	Applied, Refused, Sent, Undecided, Disconnected, Gone int
	// Listed are those that are neither Applied nor Sent, the first 1,000.
	Listed []Result
}

// Result is what became of one attachment.
type Result struct {
	ID, DaemonID string
	Status       Status
	Error        string // why it was refused or not decided
}

const maxListed = 1000

func (o *Outcome) add(r Result) {
	switch r.Status {
	case Applied:
		o.Applied++
		return
	case Sent:
		o.Sent++
		return
	case Refused:
		o.Refused++
	case Undecided:
		o.Undecided++
	case Gone:
		o.Gone++
	default:
		o.Disconnected++
	}
	if len(o.Listed) < maxListed {
		o.Listed = append(o.Listed, r)
	}
}

// OK reports whether the change is in force wherever it can be: nothing was refused, left undecided or out of reach.
func (o *Outcome) OK() bool { return o.Refused+o.Undecided+o.Disconnected == 0 }

// Refresh has Options.Policy asked again about the attachments that are selected, and sends what differs from what they
// have. It returns at once; see Wait.
func (c *ControlPlane) Refresh(selector Selector) Change {
	change := Change{sequence: c.sequence.Add(1)}
	for _, d := range c.selected(selector) {
		if m := d.refresh(&selector); len(m) > 0 {
			change.members = append(change.members, members{d, m})
		}
	}
	return change
}

// Set gives the attachment a policy of its own, in place of what Options.Policy says, until it is detached or Set is
// called with nil. It need not be connected.
func (c *ControlPlane) Set(id string, p *policy.Policy) Change {
	c.mu.Lock()
	if p == nil {
		delete(c.own, id)
	} else {
		c.own[id] = p
	}
	c.mu.Unlock()
	return c.Refresh(Selector{ID: id})
}

// Wait returns when each attachment of the change has what was decided for it, now or later: a change that replaced this
// one counts. It does not wait for daemons that have no stream. The error is ctx's; the outcome is then of those that were
// waited for until then, and the rest is counted nowhere.
func (c *ControlPlane) Wait(ctx context.Context, change Change) (Outcome, error) {
	var outcome Outcome
	for _, m := range change.members {
		for _, a := range m.attachments {
			for {
				result, changed := m.daemon.result(a, change.sequence)
				if changed == nil {
					outcome.add(result)
					break
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return outcome, ctx.Err()
				}
			}
		}
	}
	return outcome, nil
}
