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
	changed chan struct{} // closed when an attachment is settled; nil: nobody waits

	forget *time.Timer // while there is no stream
	absent *time.Timer // while attachments may be absent
}

// attachment is what is known of one. It is guarded by its daemon's mu, and kept small: there are many.
type attachment struct {
	id, target string
	dnsAddress string
	labels     labels
	kind       TargetType

	pending bool // no policy yet
	absent  bool // not told of since its daemon came back
	gone    bool
	decided bool
	due     bool // in daemon.fresh or daemon.due
	queued  bool // in daemon.unsent
	refused bool // sent was
	status  Status

	want    *document      // decided last; nil: nothing
	sent    string         // revision of what was sent last, or is in force; empty: not known
	inForce string         // as far as the daemon told
	named   *namedPolicy   // that it is under or, when it moves, on its way to
	perhaps []*namedPolicy // that it may be under, too
	moves   bool
	alone   bool   // the daemon did not have the named policy: send the policy itself
	number  uint64 // of the command whose result tells of want; 0: none is under way
	cost    int    // of it

	asked   uint64 // ControlPlane.sequence when it was decided last
	settled uint64 // and of the decision that status is about
	err     string // last refusal, or why it is undecided
	stats   counters
}

type counters struct{ packetsAllowed, packetsBlocked, queriesAllowed, queriesBlocked uint64 }

// view is the attachment for the user.
func (d *daemon) view(a *attachment) Attachment {
	return Attachment{
		ID: a.id, DaemonID: d.id, Target: a.target, Type: a.kind, Metadata: a.labels.metadata(),
		Host: d.hostname, HostMetadata: d.metadata, DNSAddress: a.dnsAddress,
		Pending: a.pending, Decided: a.decided, Status: a.state(d), Revision: a.inForce, Error: a.err,
		Stats: a.statistics(),
	}
}

func (a *attachment) statistics() Stats {
	return Stats{
		ID: a.id, PacketsAllowed: a.stats.packetsAllowed, PacketsBlocked: a.stats.packetsBlocked,
		DNSQueriesAllowed: a.stats.queriesAllowed, DNSQueriesBlocked: a.stats.queriesBlocked,
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

// state is the status as of now: one that is about an older decision says nothing of the newer.
func (a *attachment) state(d *daemon) Status {
	switch {
	case a.gone:
		return Gone
	case d.stream == nil || a.absent:
		return Disconnected
	case a.due || a.settled < a.asked:
		return Waiting
	default:
		return a.status
	}
}

// result is what became of a decision made at sequence or later. While there is none, changed closes when there may be.
func (d *daemon) result(a *attachment, sequence uint64) (r Result, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r = Result{ID: a.id, DaemonID: d.id, Status: a.state(d), Error: a.err}
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
	slices.SortFunc(found, func(a, b *attachment) int { return cmp.Compare(a.id, b.id) })
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
	for _, m := range request.GetAttachments() {
		if a, known := d.add(m); !known {
			fresh = append(fresh, d.view(a))
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
func (d *daemon) add(m told) (_ *attachment, known bool) {
	a := d.attachments[m.GetId()]
	if known = a != nil; known {
		d.reset(a)
	} else {
		a = &attachment{id: m.GetId()}
		d.attachments[a.id] = a
		d.plane.index.add(a.id, d)
		d.bytes += a.size()
	}
	a.absent, a.pending = false, false
	d.describes(a, m)
	applied := m.GetApplied()
	a.sent, a.inForce, a.err = applied.GetRevision(), applied.GetRevision(), clip(applied.GetError())
	d.named.join(a, d.named.byName[applied.GetPolicyName()])
	return a, known
}

// describes takes what the daemon says of an attachment beside its policy. What was decided for other metadata is not
// decided for these.
func (d *daemon) describes(a *attachment, m told) {
	a.decided = a.decided && a.labels.equal(m.GetMetadata())
	d.bytes -= a.size()
	a.target, a.kind, a.labels, a.dnsAddress = m.GetTarget(), targetType(m.GetType()), newLabels(m.GetMetadata()), m.GetDnsAddress()
	d.bytes += a.size()
}

// remove forgets an attachment.
func (d *daemon) remove(a *attachment) {
	delete(d.attachments, a.id)
	d.plane.index.remove(a.id, d)
	d.bytes -= a.size()
	d.wants(a, nil)
	d.named.leave(a)
	d.release(a)
	a.gone = true
	d.tell()
}

// size is about what it takes of memory.
func (a *attachment) size() int {
	return 512 + len(a.id) + len(a.target) + len(a.dnsAddress) + a.labels.size()
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
		c.index.remove(a.id, d)
		delete(c.own, a.id)
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
