// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
)

// Fields of the protocol that hold a whole policy.
const (
	bulkUpdateField    protowire.Number = 7  // ControlCommand.bulk_update
	subscribedAckField protowire.Number = 12 // ControlCommand.subscribed_ack
	namedPolicyField   protowire.Number = 3  // NamedPolicy.policy
)

// overhead is room for all that is in a command beside a policy.
const overhead = 1024

// next is the command to send now; nil: none. What waits for its first policy comes first. The rest is decided before
// anything is sent for it, so that what many go on to together is seen; what becomes due meanwhile is decided when that
// is sent, or cannot be yet.
func (s *stream) next() *netfencev1.ControlCommand {
	defer s.report()
	d := s.daemon
	for {
		select {
		case <-s.away:
			return nil
		case <-s.ended:
			return nil
		default:
		}
		d.mu.Lock()
		if d.stream != s {
			d.mu.Unlock()
			return nil
		}
		deciding := take(&d.fresh)
		first := deciding != nil
		if !first && s.then == nil {
			deciding = take(&s.batch)
		}
		if deciding == nil {
			command, more := s.send()
			if command == nil && !more && len(d.due) > 0 {
				s.batch, d.due = d.due, nil
				slices.SortFunc(s.batch, func(a, b *attachment) int { return cmp.Compare(a.id(), b.id()) })
				more = true
			}
			d.mu.Unlock()
			if command != nil || !more {
				return command
			}
			continue
		}
		d.mu.Unlock()
		d.decide(s.grpc.Context(), s, deciding)
		if first {
			d.mu.Lock()
			command := s.command(deciding)
			d.mu.Unlock()
			if command != nil {
				return command
			}
		}
	}
}

// report tells the user of what was refused here.
func (s *stream) report() {
	for _, f := range s.refusals {
		f()
	}
	s.refusals = nil
}

func take(list *[]*attachment) *attachment {
	if len(*list) == 0 {
		return nil
	}
	a := (*list)[0]
	(*list)[0] = nil
	if *list = (*list)[1:]; len(*list) == 0 {
		*list = nil
	}
	return a
}

// send is the next command of those that are decided, as long as the daemon keeps up; more: ask again.
func (s *stream) send() (command *netfencev1.ControlCommand, more bool) {
	d := s.daemon
	if a := s.then; a != nil {
		s.then = nil
		return s.command(a), true
	}
	if s.outstanding >= s.plane.opts.QueueBytes {
		return nil, false
	}
	if a := take(&d.unsent); a != nil {
		a.queued = false
		return s.command(a), true
	}
	if s.outstanding > 0 {
		return nil, false // the last user of a policy may still be on its way to another
	}
	for len(d.named.empty) > 0 {
		p := d.named.empty[0]
		d.named.empty, p.listed = d.named.empty[1:], false
		if p.users == 0 && d.named.byName[p.name] == p {
			d.named.remove(p)
			return &netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_DeletePolicy{DeletePolicy: p.name}}, true
		}
	}
	return nil, false
}

// command brings an attachment to what it is to have; nil: there is nothing to send.
func (s *stream) command(a *attachment) *netfencev1.ControlCommand {
	d, want := s.daemon, a.want
	switch {
	case want == nil || a.gone:
		return nil
	case a.sent == want.revision && a.number != 0:
		return nil // on its way
	case (a.refused || a.alone) && a.number == 0 && a.inForce == want.revision:
		a.sent, a.refused = want.revision, false // what was refused changed nothing
		s.settle(a)
		return nil
	case a.sent == want.revision:
		a.sent = want.revision // the text that is shared
		s.settle(a)
		return nil
	}
	if r := s.refuses(want); r != nil {
		d.release(a)
		a.sent, a.refused = want.revision, true
		d.settle(a, Refused, r.String())
		view := d.view(a)
		s.refusals = append(s.refusals, func() { s.plane.refused(view, *r) })
		return nil
	}
	if s.features.Has(wire.NamedPolicies) && s.features.Has(wire.Results) && !a.alone {
		certain := a.named != nil && !a.moves
		if p := a.named; certain && p.users > 1 && p.wanted[want] == p.users {
			return s.put(p, want)
		}
		p := d.named.byRevision[want.revision]
		switch {
		case p != nil && p == a.named && certain: // it was put to something else, which was refused
			d.release(a)
			a.sent, a.number, a.refused = want.revision, p.latest, false
			if len(p.puts) == 0 {
				a.number = 0
				s.settle(a)
			}
			return nil
		case p != nil:
			d.named.move(a, p)
			return s.toOne(a, s.use(a, p))
		case d.named.wanted[want] > 1:
			s.then = a
			if p = d.named.moving(want); p == nil {
				p = d.named.make()
			}
			return s.put(p, want)
		}
	}
	d.named.move(a, nil)
	return s.toOne(a, s.whole(a))
}

// refuses judges a policy that the daemon could not take, or would take for a wider one.
func (s *stream) refuses(want *document) *Refusal {
	if field := want.unsupported(s.features); field != nil {
		return &Refusal{Revision: want.revision, Violations: []Violation{{
			Field: field.Field, Expected: fmt.Sprintf("a daemon with the feature %q", field.Feature),
		}}}
	}
	if size := len(want.body) + overhead; size > s.maxCommand {
		return &Refusal{Revision: want.revision, Violations: []Violation{{
			Field: "bulk_update", Value: fmt.Sprintf("%d bytes", size),
			Expected: fmt.Sprintf("at most %d bytes: fewer rules, or shorter ones", s.maxCommand),
		}}}
	}
	return nil
}

// settle says of what the daemon has, or refused, that it does.
func (s *stream) settle(a *attachment) {
	switch {
	case a.refused:
		s.daemon.settle(a, Refused, a.err)
	case !s.features.Has(wire.Results) && a.inForce != a.sent:
		s.daemon.settle(a, Sent, "")
	default:
		a.inForce = a.sent
		s.daemon.settle(a, Applied, "")
	}
}

// whole is a command with the policy itself.
func (s *stream) whole(a *attachment) *netfencev1.ControlCommand {
	command := &netfencev1.ControlCommand{Id: a.id()}
	field := bulkUpdateField
	if a.pending && a.sent == "" {
		field = subscribedAckField
	}
	command.ProtoReflect().SetUnknown(a.want.field(field))
	return command
}

// use is a command that names the policy.
func (s *stream) use(a *attachment, p *namedPolicy) *netfencev1.ControlCommand {
	ref := &netfencev1.PolicyRef{Name: p.name, Revision: p.revision}
	if a.pending && a.sent == "" {
		ack := &netfencev1.SubscribedAck{UsePolicy: ref}
		return &netfencev1.ControlCommand{Id: a.id(), Command: &netfencev1.ControlCommand_SubscribedAck{SubscribedAck: ack}}
	}
	return &netfencev1.ControlCommand{Id: a.id(), Command: &netfencev1.ControlCommand_UsePolicy{UsePolicy: ref}}
}

// toOne numbers a command for one attachment.
func (s *stream) toOne(a *attachment, command *netfencev1.ControlCommand) *netfencev1.ControlCommand {
	d := s.daemon
	d.release(a)
	a.sent, a.refused = a.want.revision, false
	if !s.features.Has(wire.Results) {
		a.pending = false
		d.settle(a, Sent, "")
		return command
	}
	s.number++
	command.Number, command.Revision = s.number, a.sent
	a.number, a.cost = s.number, uint32(proto.Size(command)+overhead)
	s.outstanding += int(a.cost)
	return command
}

// put sends a policy for all who are under its name.
func (s *stream) put(p *namedPolicy, want *document) *netfencev1.ControlCommand {
	d := s.daemon
	s.number++
	d.named.revise(p, want.revision)
	for _, a := range d.attachments {
		switch {
		case a.named == p && !a.moves:
			d.release(a)
			a.sent, a.number, a.refused = want.revision, s.number, false
		case slices.Contains(a.maybe(), p): // and wants the same, but only an answer of its own tells
			d.release(a)
			a.sent, a.refused = "", false
			d.queue(a)
		}
	}
	m := &netfencev1.NamedPolicy{Name: p.name, Revision: want.revision}
	m.ProtoReflect().SetUnknown(want.field(namedPolicyField))
	command := &netfencev1.ControlCommand{
		Number: s.number, Revision: want.revision,
		Command: &netfencev1.ControlCommand_PutPolicy{PutPolicy: m},
	}
	cost := proto.Size(command) + overhead
	p.puts[s.number] = put{revision: want.revision, cost: cost}
	p.latest = s.number
	d.named.underway[s.number] = p
	s.outstanding += cost
	return command
}

// release ends the wait for the result of the attachment's latest command.
func (d *daemon) release(a *attachment) {
	if d.stream != nil {
		d.stream.outstanding -= int(a.cost)
	}
	a.number, a.cost = 0, 0
}
