// SPDX-License-Identifier: Apache-2.0

package controlplanetest

import (
	"errors"
	"io"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

var (
	errUnknown = errors.New("unknown")
	errStale   = errors.New("stale")
)

// receive takes commands until the stream ends.
func (d *Daemon) receive(s *stream) {
	defer close(s.ended)
	defer s.cancel()
	synced := false
	for {
		command, err := s.grpc.Recv()
		if err != nil {
			d.mu.Lock()
			if !errors.Is(err, io.EOF) {
				s.err = err
				d.lastError = err.Error()
			}
			if d.stream == s {
				d.stream = nil
			}
			d.change()
			d.mu.Unlock()
			return
		}
		switch {
		case command.GetSyncAck() != nil:
			if !synced {
				synced = true
				close(s.synced)
			}
		case command.GetGoAway() != nil:
			d.count(command)
			s.sending.Lock()
			_ = s.grpc.CloseSend() // never fails (grpc.ClientStream)
			s.sending.Unlock()
		default:
			if result := d.obey(command); result != nil {
				s.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Result{Result: result}})
			}
		}
	}
}

func (d *Daemon) change() {
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *Daemon) count(command *netfencev1.ControlCommand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.countLocked(command)
}

func (d *Daemon) countLocked(command *netfencev1.ControlCommand) {
	m := command.ProtoReflect()
	if field := m.WhichOneof(m.Descriptor().Oneofs().ByName("command")); field != nil {
		d.commands[string(field.Name())]++
	}
}

// obey applies a command, or not, and says what became of it; nil: no answer is wanted.
func (d *Daemon) obey(command *netfencev1.ControlCommand) *netfencev1.CommandResult {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.change()
	d.countLocked(command)
	result := &netfencev1.CommandResult{Number: command.GetNumber(), Id: command.GetId(), Code: netfencev1.CommandCode_COMMAND_CODE_APPLIED}
	a := d.attachments[command.GetId()]
	var err error
	switch {
	case command.GetPutPolicy() != nil:
		err = d.put(command.GetPutPolicy())
	case command.GetDeletePolicy() != "":
		err = d.forget(command.GetDeletePolicy())
	case a == nil:
		err = errUnknown
	case command.GetBaseRevision() != "" && command.GetBaseRevision() != a.revision:
		err = errStale
	default:
		err = d.apply(a, command)
	}
	if a != nil {
		result.Revision = a.revision
	}
	switch {
	case err == nil:
		if put := command.GetPutPolicy(); put != nil {
			result.Revision = put.GetRevision()
		}
	case errors.Is(err, errUnknown):
		result.Code = netfencev1.CommandCode_COMMAND_CODE_UNKNOWN
	case errors.Is(err, errStale):
		result.Code = netfencev1.CommandCode_COMMAND_CODE_STALE
	default:
		result.Code = netfencev1.CommandCode_COMMAND_CODE_REFUSED
		result.Violations = wire.CommandViolations(command, err)
		if a != nil {
			a.err = err.Error()
			if a.pending {
				delete(d.attachments, command.GetId()) // rolled back
			}
		}
	}
	if command.GetNumber() == 0 {
		return nil
	}
	return result
}

// apply changes one attachment.
func (d *Daemon) apply(a *attachment, command *netfencev1.ControlCommand) error {
	ref := command.GetUsePolicy()
	if ack := command.GetSubscribedAck(); ack.GetUsePolicy() != nil {
		ref = ack.GetUsePolicy()
	}
	next, name := held{revision: command.GetRevision()}, ""
	if ref != nil {
		p := d.named[ref.GetName()]
		if p == nil {
			return errUnknown
		}
		if ref.GetRevision() != "" && ref.GetRevision() != p.revision {
			return errStale
		}
		next, name = *p, ref.GetName()
	} else {
		change, err := wire.ChangeFrom(command)
		if err != nil {
			return err
		}
		if !change.Whole && a.name != "" {
			return errors.New("an increment on a named policy")
		}
		if next.policy, err = change.Edit(a.policy); err != nil {
			return err
		}
	}
	if err := d.judge(command.GetId(), next.policy); err != nil {
		return err
	}
	if command.GetNumber() == 0 {
		next.revision = ""
	}
	a.held, a.name, a.pending, a.err = next, name, false, ""
	return nil
}

func (d *Daemon) judge(id string, p *policy.Policy) error {
	if err := p.Validate(policy.Limits{}); err != nil {
		return err
	}
	if d.refuse != nil {
		return d.refuse(id, p)
	}
	return nil
}

// put takes a named policy, for all who use it or none.
func (d *Daemon) put(m *netfencev1.NamedPolicy) error {
	p, _, err := wire.PolicyFrom(m.GetPolicy())
	if err != nil {
		return err
	}
	if err := d.judge("", p); err != nil {
		return err
	}
	next := held{policy: p, revision: m.GetRevision()}
	for id, a := range d.attachments {
		if a.name == m.GetName() {
			if err := d.judge(id, p); err != nil {
				return err
			}
		}
	}
	for _, a := range d.attachments {
		if a.name == m.GetName() {
			a.held = next
		}
	}
	d.named[m.GetName()] = &next
	return nil
}

func (d *Daemon) forget(name string) error {
	for _, a := range d.attachments {
		if a.name == name {
			return errors.New("in use")
		}
	}
	delete(d.named, name)
	return nil
}
