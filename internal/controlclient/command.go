// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"fmt"
	"strings"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// source names us in what the store says of refusals.
const source = "control plane"

// maxIDBytes is more than any id of ours has: they are UUIDs.
const maxIDBytes = 128

// handle applies one command, or answers why not. Commands of one attachment come here one at a time.
func (s *session) handle(ctx context.Context, cmd *netfencev1.ControlCommand) {
	if cmd.GetId() == "" {
		s.refuseWithoutID(cmd)
		return
	}
	a, _, err := s.c.opts.Store.Get(cmd.GetId())
	switch {
	case err != nil, a.OwnPolicy:
		// Who gave an attachment its policy did not give it to the control plane.
		s.unknown(cmd)
		return
	case a.Removing != state.ReasonNone:
		// Its Unsubscribed is on the way, with the reason.
		s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_UNKNOWN, "", nil)
		return
	case cmd.GetBaseRevision() != "" && cmd.GetBaseRevision() != a.PolicyRevision:
		s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_STALE, a.PolicyRevision, nil)
		return
	}
	change, err := read(cmd, a)
	if err != nil {
		// The store refuses it too, and remembers why for the attachment's status.
		change.Edit = func(*policy.Policy) (*policy.Policy, error) { return nil, err }
	}
	desired := state.Change{Edit: change.Edit, PolicyRevision: policyRevision(cmd), Acknowledge: change.Whole}
	if change.Use != nil {
		desired.Use, desired.UseRevision = change.Use.Name, change.Use.Revision
	}
	revision, err := s.c.opts.Store.Apply(a.ID, source, desired)
	switch {
	case errors.Is(err, state.ErrNotFound):
		s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_UNKNOWN, "", nil)
	case err != nil:
		s.refused(cmd, a, err)
	default:
		if len(change.Warnings) > 0 {
			s.c.log.Warn("command adjusted", "attachment", a.ID, "warnings", change.Warnings)
		}
		if a.Pending {
			s.c.settle(a.ID, outcome{revision: revision})
		}
		named := cmd.GetRevision()
		if change.Use != nil {
			named = s.desired(a.ID)
		}
		s.confirm(ctx, cmd, named, revision, change.Warnings)
	}
}

// read decodes a command for a.
func read(cmd *netfencev1.ControlCommand, a state.Attachment) (wire.Change, error) {
	if n := len(cmd.GetRevision()); n > wire.MaxRevision {
		return wire.Change{}, violation("revision", cmd.GetRevision(), fmt.Sprintf("at most %d bytes", wire.MaxRevision))
	}
	change, err := wire.ChangeFrom(cmd)
	switch {
	case err != nil || change.Whole:
		return change, err
	case a.Pending:
		return wire.Change{}, violation("command", "an increment", "subscribed_ack, bulk_update or use_policy first: the attachment is pending")
	case a.PolicyName != "":
		return wire.Change{}, violation("command", "an increment", fmt.Sprintf("put_policy: the attachment has the policy %q, as others may", clip(a.PolicyName)))
	}
	return change, nil
}

// desired is the control plane's name for what id is to have.
func (s *session) desired(id string) string {
	a, _, err := s.c.opts.Store.Get(id)
	if err != nil {
		return ""
	}
	return a.PolicyRevision
}

// policyRevision is the control plane's name for what the attachment has after the command. Who does
// not number its commands cannot know what became of them, so what it names says nothing.
func policyRevision(cmd *netfencev1.ControlCommand) string {
	if cmd.GetNumber() == 0 {
		return ""
	}
	return cmd.GetRevision()
}

// confirm answers a numbered command when it is in force, without keeping those behind it waiting.
func (s *session) confirm(ctx context.Context, cmd *netfencev1.ControlCommand, named string, revision state.Revision, warnings []string) {
	if cmd.GetNumber() == 0 || s.waits.Acquire(ctx, 1) != nil {
		return
	}
	// The policy itself, which may be large, is not kept for the wait.
	brief := &netfencev1.ControlCommand{Id: cmd.GetId(), Number: cmd.GetNumber()}
	s.work.Go(func() {
		defer s.waits.Release(1)
		err := s.c.opts.Store.Wait(ctx, brief.GetId(), revision)
		switch {
		case err == nil && s.c.opts.Store.Superseded(brief.GetId(), revision):
			s.answer(brief, netfencev1.CommandCode_COMMAND_CODE_SUPERSEDED, s.c.inForce(brief.GetId()).Revision, nil)
		case err == nil:
			s.answer(brief, netfencev1.CommandCode_COMMAND_CODE_APPLIED, named, warned(warnings))
		case ctx.Err() != nil:
			// The stream is gone; the next one begins with what is in force.
		case errors.Is(err, state.ErrNotFound):
			s.answer(brief, netfencev1.CommandCode_COMMAND_CODE_UNKNOWN, "", nil)
		default:
			s.c.log.Warn("command refused by the kernel", "attachment", brief.GetId(), "number", brief.GetNumber(), "err", err)
			s.answer(brief, netfencev1.CommandCode_COMMAND_CODE_REFUSED, s.c.inForce(brief.GetId()).Revision, wire.CommandViolations(brief, err))
		}
	})
}

// refused answers a command that changed nothing. The refused first policy of an attachment ends its attach.
func (s *session) refused(cmd *netfencev1.ControlCommand, a state.Attachment, err error) {
	s.c.log.Warn("command refused", "attachment", a.ID, "number", cmd.GetNumber(), "err", err)
	if a.Pending && (cmd.GetSubscribedAck() != nil || cmd.GetBulkUpdate() != nil || cmd.GetUsePolicy() != nil) {
		s.c.settle(a.ID, outcome{err: err})
	}
	code := netfencev1.CommandCode_COMMAND_CODE_REFUSED
	var other *state.RevisionError
	switch {
	case errors.Is(err, state.ErrNoPolicy):
		code = netfencev1.CommandCode_COMMAND_CODE_UNKNOWN
	case errors.As(err, &other):
		code = netfencev1.CommandCode_COMMAND_CODE_STALE
	}
	s.answer(cmd, code, s.c.inForce(a.ID).Revision, wire.CommandViolations(cmd, err))
}

// refuseWithoutID answers a command that names no attachment.
func (s *session) refuseWithoutID(cmd *netfencev1.ControlCommand) {
	_, err := wire.ChangeFrom(cmd)
	if err == nil {
		err = violation("id", "", "an attachment's id")
	}
	s.c.log.Warn("command refused", "number", cmd.GetNumber(), "err", err)
	s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_REFUSED, "", wire.CommandViolations(cmd, err))
}

// unknown answers a command for an attachment that is not here.
func (s *session) unknown(cmd *netfencev1.ControlCommand) {
	s.c.log.Warn("command for an unknown attachment", "number", cmd.GetNumber(), "attachment", clip(cmd.GetId()))
	s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_UNKNOWN, "", nil)
	if len(cmd.GetId()) > maxIDBytes {
		return // never one of ours, and no reason to carry it back
	}
	// An error means that the stream is over.
	_ = s.unsubscribed(cmd.GetId(), netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_ERROR, state.ErrNotFound.Error())
}

// answer sends a result to who asked for one by a number, so to no peer that only knows the published protocol.
func (s *session) answer(cmd *netfencev1.ControlCommand, code netfencev1.CommandCode, revision string, violations []*netfencev1.Violation) {
	if cmd.GetNumber() == 0 {
		return
	}
	result := &netfencev1.CommandResult{Number: cmd.GetNumber(), Code: code, Revision: revision, Violations: violations}
	if len(cmd.GetId()) <= maxIDBytes {
		result.Id = cmd.GetId()
	}
	// An error means that the stream is over; the next one begins with what is in force.
	_ = s.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Result{Result: result}})
}

// warned carries what was adjusted in the result of a command that was applied.
func warned(warnings []string) []*netfencev1.Violation {
	var list []*netfencev1.Violation
	for _, warning := range warnings {
		field, text, _ := strings.Cut(warning, ": ")
		list = append(list, &netfencev1.Violation{Field: field, Expected: clip(text)})
	}
	return list
}

func violation(field, value, expected string) error {
	return &wire.RefusedError{Violations: []wire.Violation{{Field: field, Value: clip(value), Expected: expected}}}
}
