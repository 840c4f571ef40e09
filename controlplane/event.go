// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// read takes what the daemon tells until the stream ends, and says why it did; nil: the daemon ended it.
func (s *stream) read() error {
	first, err := s.grpc.Recv()
	if err != nil {
		return err
	}
	request := first.GetSync()
	if request == nil {
		return status.Error(codes.InvalidArgument, "the first event of a stream is SyncRequest")
	}
	if err := s.plane.admit(s, request); err != nil {
		return err
	}
	for {
		event, err := s.grpc.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.hear(event); err != nil {
			return err
		}
	}
}

func (s *stream) hear(event *netfencev1.DaemonEvent) error {
	switch event := event.GetEvent().(type) {
	case *netfencev1.DaemonEvent_Subscribed:
		return s.subscribed(event.Subscribed)
	case *netfencev1.DaemonEvent_Unsubscribed:
		s.unsubscribed(event.Unsubscribed)
	case *netfencev1.DaemonEvent_Heartbeat:
		s.heartbeat(event.Heartbeat)
	case *netfencev1.DaemonEvent_Result:
		s.result(event.Result)
	case *netfencev1.DaemonEvent_Sync:
		return status.Error(codes.InvalidArgument, "a second SyncRequest")
	}
	return nil // what a newer daemon tells
}

// subscribed is an attachment that is new, that the SyncRequest had no room for, or of which something has changed.
func (s *stream) subscribed(m *netfencev1.Subscribed) error {
	if err := checkAttachment(m); err != nil {
		return err
	}
	d := s.daemon
	d.mu.Lock()
	if d.stream != s {
		d.mu.Unlock()
		return nil
	}
	a, known, in := d.attachments[m.GetId()], true, newRoom([]told{m})
	switch {
	case a != nil && !a.absent && (m.GetApplied() != nil || a.number != 0):
		// Commands may be on their way, and count from before this was said: what it is to have stays as it is.
		d.describes(a, m, in)
	default:
		a, known = d.add(m, in)
		a.pending = m.GetApplied() == nil
	}
	err := d.bounded()
	view := d.view(a)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if f := s.plane.opts.OnAttach; f != nil && !known {
		f(view)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stream == s {
		d.ask(a)
	}
	return nil
}

func (s *stream) unsubscribed(m *netfencev1.Unsubscribed) {
	d := s.daemon
	d.mu.Lock()
	a := d.attachments[m.GetId()]
	if d.stream != s || a == nil {
		d.mu.Unlock()
		return
	}
	view := d.view(a)
	d.remove(a)
	s.wakeUp()
	d.mu.Unlock()
	s.plane.detached(view, Detached{Reason: reason(m.GetReason()), Error: clip(m.GetError())})
}

func (s *stream) heartbeat(m *netfencev1.Heartbeat) {
	d := s.daemon
	var told []Stats
	d.mu.Lock()
	if d.stream == s {
		for _, stats := range m.GetStats() {
			a := d.attachments[stats.GetId()]
			if a == nil {
				continue
			}
			a.stats = counters{
				stats.GetPacketsAllowed(), stats.GetPacketsBlocked(), stats.GetDnsQueriesAllowed(), stats.GetDnsQueriesBlocked(),
			}
			if s.plane.opts.OnStats != nil && len(told) < len(d.attachments) {
				told = append(told, a.statistics())
			}
		}
	}
	d.mu.Unlock()
	if len(told) > 0 {
		s.plane.opts.OnStats(d.id, told)
	}
}

// result is the answer to a command: of one attachment, or of the named policy of many.
func (s *stream) result(m *netfencev1.CommandResult) {
	d := s.daemon
	var refused []Attachment
	var revision string
	settled := func(a *attachment, of *netfencev1.CommandResult) {
		if a.number != m.GetNumber() {
			return
		}
		d.answered(a, of)
		if a.refused {
			revision = a.sent
			refused = append(refused, d.view(a))
		}
	}
	d.mu.Lock()
	if d.stream != s || m.GetNumber() == 0 {
		d.mu.Unlock()
		return
	}
	if a := d.attachments[m.GetId()]; a != nil {
		settled(a, m)
	} else if p := d.named.underway[m.GetNumber()]; p != nil {
		of := d.put(p, m)
		for id, a := range d.attachments {
			settled(a, of(id))
		}
	}
	s.wakeUp()
	d.mu.Unlock()
	for _, a := range refused {
		s.plane.refused(a, Refusal{Revision: revision, Violations: violations(m)})
	}
}

// answered notes the result of the attachment's latest command.
func (d *daemon) answered(a *attachment, m *netfencev1.CommandResult) {
	d.release(a)
	code := m.GetCode()
	applied := code == netfencev1.CommandCode_COMMAND_CODE_APPLIED
	toNamed := a.moves && a.named != nil
	if a.moves {
		d.named.moved(a, applied)
	}
	if m.GetId() != "" {
		a.inForce = clip(m.GetRevision())
		applied = applied || a.inForce == a.sent // refused, but it has the same by an earlier command
	}
	status, text := Applied, ""
	switch {
	case applied:
		a.inForce, a.pending, a.again = a.sent, false, false
	case toNamed && (code == netfencev1.CommandCode_COMMAND_CODE_UNKNOWN || code == netfencev1.CommandCode_COMMAND_CODE_STALE):
		// It does not hold that policy, or another content: what put it there was refused.
		a.sent, a.alone = "", true
		d.queue(a)
		return
	case code == netfencev1.CommandCode_COMMAND_CODE_SUPERSEDED && !a.again:
		// By a change of the named policy that it moved to, before it was there. It may lack something: once more.
		a.sent, a.again = "", true
		d.queue(a)
		return
	case code == netfencev1.CommandCode_COMMAND_CODE_UNKNOWN:
		status = Gone // its Unsubscribed is on the way
	default:
		a.refused = true
		status, text = Refused, Refusal{Violations: violations(m)}.String()
	}
	if a.want != nil && a.want.revision == a.sent {
		d.settle(a, status, text)
	}
}

// put notes the result of a named policy, and returns what it means for each attachment under it. A policy that the
// daemon holds now may be refused for some of them: those that the result lists, by id. When it lists as many as it can,
// there may be others.
func (d *daemon) put(p *namedPolicy, m *netfencev1.CommandResult) func(id string) *netfencev1.CommandResult {
	delete(d.named.underway, m.GetNumber())
	this := p.puts[m.GetNumber()]
	delete(p.puts, m.GetNumber())
	d.stream.outstanding -= this.cost
	applied := m.GetCode() == netfencev1.CommandCode_COMMAND_CODE_APPLIED
	partly := !applied && m.GetRevision() == this.revision && len(m.GetViolations()) < maxViolations
	if (applied || m.GetRevision() == this.revision) && m.GetNumber() > p.heldBy {
		p.held, p.heldBy = this.revision, m.GetNumber()
	}
	if len(p.puts) == 0 && p.revision != p.held {
		d.named.revise(p, p.held)
	}
	others := &netfencev1.CommandResult{Code: netfencev1.CommandCode_COMMAND_CODE_APPLIED}
	listed := make(map[string]bool, len(m.GetViolations()))
	for _, v := range m.GetViolations() {
		listed[v.GetValue()] = true
	}
	return func(id string) *netfencev1.CommandResult {
		if partly && !listed[id] {
			return others
		}
		return m
	}
}

// maxViolations is as many as a daemon tells of one command.
const maxViolations = 32

// violations of a result.
func violations(m *netfencev1.CommandResult) []Violation {
	var list []Violation
	for _, v := range m.GetViolations() {
		if len(list) == maxViolations {
			break
		}
		list = append(list, Violation{Field: clip(v.GetField()), Value: clip(v.GetValue()), Expected: clip(v.GetExpected())})
	}
	if len(list) == 0 {
		list = append(list, Violation{Expected: "another command (" + m.GetCode().String() + ")"})
	}
	return list
}
