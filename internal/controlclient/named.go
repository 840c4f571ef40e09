// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/wire"
)

// maxViolations of one result, as wire has it.
const maxViolations = 32

// handleNamed applies a command about a named policy. It runs in the receiver, with nothing dispatched: commands for the
// policy's users that come after it find them as it leaves them.
func (s *session) handleNamed(ctx context.Context, cmd *netfencev1.ControlCommand) {
	if cmd.GetPutPolicy() == nil {
		s.deletePolicy(cmd)
		return
	}
	n, warnings, err := wire.NamedFrom(cmd)
	if err != nil {
		s.namedRefused(cmd, err)
		return
	}
	if base := cmd.GetBaseRevision(); base != "" {
		if has, _ := s.c.opts.Store.NamedPolicy(n.Name); has.Revision != base {
			s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_STALE, has.Revision, nil)
			return
		}
	}
	users, err := s.c.opts.Store.PutNamed(source, state.Named{Name: n.Name, Revision: n.Revision, Policy: n.Policy})
	if err != nil {
		s.namedRefused(cmd, err)
		return
	}
	if len(warnings) > 0 {
		s.c.log.Warn("command adjusted", "policy", clip(n.Name), "warnings", warnings)
	}
	if cmd.GetNumber() == 0 || s.waits.Acquire(ctx, 1) != nil {
		return
	}
	brief := &netfencev1.ControlCommand{Number: cmd.GetNumber()}
	s.work.Go(func() {
		defer s.waits.Release(1)
		refused := s.awaitUsers(ctx, users)
		switch {
		case ctx.Err() != nil:
			// The stream is gone; the next one begins with what is in force.
		case len(refused) > 0:
			s.c.log.Warn("policy refused for some of its attachments", "policy", clip(n.Name), "attachments", len(refused))
			s.answer(brief, netfencev1.CommandCode_COMMAND_CODE_REFUSED, n.Revision, refused[:min(len(refused), maxViolations)])
		default:
			s.answer(brief, netfencev1.CommandCode_COMMAND_CODE_APPLIED, n.Revision, warned(warnings))
		}
	})
}

// awaitUsers returns when what was changed for each is in force, and lists those for which it was refused.
func (s *session) awaitUsers(ctx context.Context, users []state.Applied) []*netfencev1.Violation {
	var refused []*netfencev1.Violation
	for _, user := range users {
		err := user.Err
		if err == nil {
			err = s.c.opts.Store.Wait(ctx, user.ID, user.Revision)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, state.ErrNotFound):
			refused = append(refused, &netfencev1.Violation{Field: "put_policy", Value: user.ID, Expected: clip(err.Error())})
		}
	}
	return refused
}

func (s *session) deletePolicy(cmd *netfencev1.ControlCommand) {
	name, err := wire.NameFrom(cmd)
	if err == nil {
		err = s.c.opts.Store.DeleteNamed(name)
	}
	switch {
	case errors.Is(err, state.ErrNoPolicy):
		s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_UNKNOWN, "", nil)
	case err != nil:
		s.namedRefused(cmd, err)
	default:
		s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_APPLIED, "", nil)
	}
}

func (s *session) namedRefused(cmd *netfencev1.ControlCommand, err error) {
	s.c.log.Warn("command refused", "number", cmd.GetNumber(), "err", err)
	s.answer(cmd, netfencev1.CommandCode_COMMAND_CODE_REFUSED, "", wire.CommandViolations(cmd, err))
}
