// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"cmp"
	"slices"
	"sync"
	"time"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// absence is how long a daemon that came back has to tell of an attachment that it had before: those that wait for their
// first policy, and those that its SyncRequest had no room for, follow one by one.
const absence = time.Minute

// daemon is what is known of one host. It outlives its streams.
type daemon struct {
	plane *ControlPlane
	id    string

	// mu guards what follows.
	mu          sync.Mutex
	stream      *stream // nil: none
	hostname    string
	metadata    map[string]string
	lastError   string
	since       time.Time
	err         error
	attachments map[string]*attachment
	bytes       int // that attachments and their metadata take, about

	fresh   []*attachment // due, and wait for their first policy
	due     []*attachment // to be decided
	unsent  []*attachment // decided, and perhaps not what the daemon has
	named   named
	gone    int           // attachments that are gone and in one of the lists, about
	changed chan struct{} // closed when an attachment is settled; nil: nobody waits

	forget *time.Timer // while there is no stream
	absent *time.Timer // while attachments may be absent
}

// view is the attachment for the user.
func (d *daemon) view(a *attachment) Attachment {
	return Attachment{
		ID: a.id(), DaemonID: d.id, Target: a.target(), Type: a.kind, Metadata: a.labels.metadata(),
		Host: d.hostname, HostMetadata: d.metadata, DNSAddress: a.dnsAddress(),
		Pending: a.pending, Decided: a.decided, Status: a.state(d), Revision: a.inForce, Error: a.err,
		Stats: a.statistics(),
	}
}

func (d *daemon) describe() Daemon {
	out := Daemon{
		ID: d.id, Hostname: d.hostname, Metadata: d.metadata, Since: d.since, Err: d.err, LastError: d.lastError,
		Connected: d.stream != nil,
	}
	if d.stream != nil {
		out.Address, out.Published, out.Features = d.stream.peer.Address, d.stream.published, d.stream.features.Names()
	}
	for _, a := range d.attachments {
		if !a.absent {
			out.Attachments++
			if a.state(d) == Waiting {
				out.Waiting++
			}
		}
	}
	return out
}

// result is what became of a decision made at sequence or later. While there is none, changed closes when there may be.
func (d *daemon) result(a *attachment, sequence uint64) (r Result, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r = Result{ID: a.id(), DaemonID: d.id, Status: a.state(d), Error: a.err}
	if r.Status == Gone || r.Status == Disconnected || a.settled >= sequence {
		if r.Status == Waiting { // for a newer one
			r.Status = a.status
		}
		return r, nil
	}
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return r, d.changed
}

// tell wakes those who wait for results.
func (d *daemon) tell() {
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// settle notes what became of the latest decision.
func (d *daemon) settle(a *attachment, status Status, err string) {
	a.status, a.err, a.settled = status, err, a.asked
	d.tell()
}

// refresh makes the selected attachments due and returns them.
func (d *daemon) refresh(selector *Selector) []*attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []*attachment
	if selector.ID != "" {
		if a := d.attachments[selector.ID]; a != nil && selector.selects(d, a) {
			found = append(found, a)
		}
	} else {
		for _, a := range d.attachments {
			if selector.selects(d, a) {
				found = append(found, a)
			}
		}
	}
	slices.SortFunc(found, func(a, b *attachment) int { return cmp.Compare(a.id(), b.id()) })
	for _, a := range found {
		d.ask(a)
	}
	return found
}

// ask makes an attachment due.
func (d *daemon) ask(a *attachment) {
	if a.due || a.gone || a.absent || d.stream == nil {
		return // or: the daemon's next stream begins with all that it has
	}
	a.due = true
	if a.pending {
		d.fresh = append(d.fresh, a)
	} else {
		d.due = append(d.due, a)
	}
	d.stream.wakeUp()
}

// queue has the writer look whether the daemon has what the attachment is to have.
func (d *daemon) queue(a *attachment) {
	if !a.queued && !a.gone {
		a.queued = true
		d.unsent = append(d.unsent, a)
	}
}

// take makes s the daemon's stream, and notes what the daemon has by its SyncRequest. It returns the attachments that
// were not known.
func (d *daemon) take(s *stream, request *netfencev1.SyncRequest) []Attachment {
	for _, timer := range []*time.Timer{d.forget, d.absent} {
		if timer != nil {
			timer.Stop()
		}
	}
	d.forget, d.absent = nil, nil
	d.stream, d.since, d.err = s, time.Now(), nil
	d.hostname, d.metadata = request.GetHostname(), request.GetMetadata()
	d.lastError = clip(request.GetHello().GetLastStreamError())
	d.fresh, d.due, d.unsent = nil, nil, nil
	for _, a := range d.attachments {
		a.absent = true
		d.reset(a)
	}
	s.outstanding = 0 // what was released was another stream's
	d.named.reset(request.GetPolicies())
	var fresh []Attachment
	for chunk := range slices.Chunk(request.GetAttachments(), roomSize) {
		in := newRoom(chunk)
		for _, m := range chunk {
			if a, known := d.add(m, in); !known {
				fresh = append(fresh, d.view(a))
			}
		}
	}
	for _, a := range d.attachments {
		if a.absent {
			d.absent = time.AfterFunc(absence, func() { d.lose(s) })
			break
		}
	}
	d.tell()
	return fresh
}

// reset forgets what went over the daemon's streams about an attachment.
func (d *daemon) reset(a *attachment) {
	d.wants(a, nil)
	d.named.leave(a)
	d.release(a)
	a.decided, a.refused, a.sent = false, false, ""
	a.due, a.queued = false, false
}

// add takes an attachment as the daemon tells of it.
func (d *daemon) add(m told, in *room) (_ *attachment, known bool) {
	a := d.attachments[m.GetId()]
	if known = a != nil; known {
		d.reset(a)
	} else {
		a = in.place()
		a.text, a.idLen = in.text[:len(m.GetId())], uint16(len(m.GetId()))
		d.attachments[a.id()] = a
		d.plane.index.add(a.id(), d)
		d.bytes += a.size()
	}
	a.absent, a.pending = false, false
	d.describes(a, m, in)
	applied := m.GetApplied()
	a.sent, a.inForce, a.err = applied.GetRevision(), applied.GetRevision(), clip(applied.GetError())
	d.named.join(a, d.named.byName[applied.GetPolicyName()])
	return a, known
}

// describes takes what the daemon says of an attachment beside its policy. What was decided for other metadata is not
// decided for these.
func (d *daemon) describes(a *attachment, m told, in *room) {
	a.decided = a.decided && a.labels.equal(m.GetMetadata())
	d.bytes -= a.size()
	a.text, a.targetLen = in.next(m), uint16(len(m.GetTarget()))
	a.kind, a.labels = targetType(m.GetType()), in.metadata(m)
	d.bytes += a.size()
}

// remove forgets an attachment.
func (d *daemon) remove(a *attachment) {
	delete(d.attachments, a.id())
	d.plane.index.remove(a.id(), d)
	d.bytes -= a.size()
	d.wants(a, nil)
	d.named.leave(a)
	d.release(a)
	a.gone = true
	if a.due || a.queued {
		d.sweep()
	}
	d.tell()
}

// sweep takes those that are gone out of the lists, now and then: where the daemon does not read or answer, nobody takes
// anything from these, while attachments may come and go.
func (d *daemon) sweep() {
	if d.gone++; d.gone <= 64+len(d.attachments) {
		return
	}
	d.gone = 0
	isGone := func(a *attachment) bool { return a.gone }
	d.fresh = slices.DeleteFunc(d.fresh, isGone)
	d.due = slices.DeleteFunc(d.due, isGone)
	d.unsent = slices.DeleteFunc(d.unsent, isGone)
}

// lose gives up the attachments that were not told of since s began.
func (d *daemon) lose(s *stream) {
	d.mu.Lock()
	var lost []Attachment
	if d.stream == s {
		for _, a := range d.attachments {
			if a.absent {
				lost = append(lost, d.view(a))
				d.remove(a)
			}
		}
	}
	d.mu.Unlock()
	for _, a := range lost {
		d.plane.detached(a, Detached{Reason: ReasonLost})
	}
}

// leave ends the daemon's stream, if it still is s.
func (d *daemon) leave(s *stream, err error) {
	d.mu.Lock()
	if d.stream != s {
		d.mu.Unlock()
		return
	}
	d.stream, d.since, d.err = nil, time.Now(), err
	d.fresh, d.due, d.unsent = nil, nil, nil
	if d.absent != nil {
		d.absent.Stop()
		d.absent = nil
	}
	d.forget = time.AfterFunc(d.plane.opts.Remember, func() { d.plane.forget(d) })
	d.tell()
	view := d.describe()
	d.mu.Unlock()
	if f := d.plane.opts.OnDisconnect; f != nil {
		f(view)
	}
}

func (d *daemon) stopTimers() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, timer := range []*time.Timer{d.forget, d.absent} {
		if timer != nil {
			timer.Stop()
		}
	}
}

// forget drops a daemon that did not come back.
func (c *ControlPlane) forget(d *daemon) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stream != nil || c.daemons[d.id] != d {
		return
	}
	delete(c.daemons, d.id)
	for _, a := range d.attachments {
		a.gone = true
		c.index.remove(a.id(), d)
		delete(c.own, a.id())
	}
	d.tell()
}

// detached tells the user of an attachment that is gone.
func (c *ControlPlane) detached(a Attachment, how Detached) {
	c.mu.Lock()
	delete(c.own, a.ID)
	c.mu.Unlock()
	if f := c.opts.OnDetach; f != nil {
		f(a, how)
	}
}
