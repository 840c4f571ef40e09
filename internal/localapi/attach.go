// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// Attach makes an attachment, closed, and answers when its first policy is in force. Whatever goes wrong before that,
// the caller's own cancellation included, is rolled back before the answer.
func (s *Server) Attach(ctx context.Context, r *netfencev1.AttachRequest) (*netfencev1.AttachResponse, error) {
	if err := checkAttach(r); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	own, err := s.readPolicy(r.GetPolicy())
	if err == nil {
		err = s.checkPolicyName(r.GetPolicyName())
	}
	if err == nil {
		err = s.checkHeir(r.GetInheritLearnedFrom())
	}
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	t, err := s.resolve(r)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	for {
		found, err := s.existing(ctx, r, t)
		if err != nil {
			return nil, err
		}
		if found != nil {
			err := s.renew(ctx, found, own, r.GetDryRun())
			if errors.Is(err, state.ErrNotFound) {
				continue // on its way out since it was found
			}
			if err != nil {
				return nil, err
			}
			return s.attachResponse(*found, false, own), nil
		}
		if r.GetDryRun() {
			if err := s.confines(t); err != nil {
				return nil, fmt.Errorf("attach %s: %w", t, err)
			}
			return &netfencev1.AttachResponse{Created: true}, nil
		}
		a, err := s.create(ctx, r, t, own)
		var taken *state.TakenError
		if errors.As(err, &taken) {
			continue // somebody was faster; existing tells whether that is a conflict
		}
		if errors.Is(err, state.ErrNotFound) {
			err = callErrorf(codes.Aborted, "the target vanished, or somebody detached it, meanwhile")
		}
		if err != nil {
			return nil, fmt.Errorf("attach %s: %w", t, err)
		}
		return s.attachResponse(a, true, own), nil
	}
}

// existing is the attachment that the request's key names already, nil when neither key nor target is in use. An
// attachment that is about to go, or that its own Attach may still roll back, is waited for.
func (s *Server) existing(ctx context.Context, r *netfencev1.AttachRequest, t target.Target) (*state.Attachment, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		found, ok := s.conflict(r.GetKey(), t)
		switch {
		case !ok:
			return nil, nil
		case found.Removing != state.ReasonNone:
			err := s.opts.Store.Wait(ctx, found.ID, state.Removal)
			if err != nil && !errors.Is(err, state.ErrNotFound) {
				return nil, err
			}
			continue
		case r.GetKey() == "" || found.Key != r.GetKey():
			return nil, fmt.Errorf("attach %s: %w", t, &state.TakenError{ID: found.ID, Key: found.Key})
		case !found.Target.Same(t), otherSide(r, found.Target, t):
			return nil, callErrorf(codes.FailedPrecondition,
				"attach %s: key %s is in use by attachment %s of %s (use another key, or detach that one)",
				t, found.Key, found.ID, found.Target)
		case !found.Held:
			return &found, nil
		case s.flights.underWay(found.ID):
			if err := s.flights.wait(ctx, found.ID); err != nil {
				return nil, err
			}
		default:
			// Its Attach is over, so a look from now on tells how it ended.
			if a, _, err := s.opts.Store.Get(found.ID); err == nil && a.Held && a.Removing == state.ReasonNone {
				return nil, callErrorf(codes.Internal, "attach %s: attachment %s of a failed attach was not rolled back (detach it)", t, a.ID)
			}
		}
	}
}

// conflict finds who uses the key, else who uses the target.
func (s *Server) conflict(key string, t target.Target) (state.Attachment, bool) {
	if key != "" {
		if a, ok := s.opts.Store.ByKey(key); ok {
			return a, true
		}
	}
	return s.opts.Store.ByTarget(t)
}

// otherSide tells whether the request insists on a direction that is not the attachment's.
func otherSide(r *netfencev1.AttachRequest, have, want target.Target) bool {
	return r.GetDirection() != netfencev1.Direction_DIRECTION_UNSPECIFIED && have.Direction != want.Direction
}

// create is one attempt, rolled back unless it succeeds.
func (s *Server) create(ctx context.Context, r *netfencev1.AttachRequest, t target.Target, own *ownPolicy) (_ state.Attachment, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return state.Attachment{}, err
	}
	defer s.flights.begin(id.String())()
	wanted := state.Attachment{
		ID: id.String(), Key: r.GetKey(), Target: t, Metadata: r.GetMetadata(), AttachedAt: time.Now().UTC(),
		Policy: policy.BlockAll(), Pending: true, Held: true,
	}
	if own != nil {
		wanted.Policy, wanted.OwnPolicy, wanted.Pending = own.policy, true, false
	}
	a, revision, err := s.opts.Store.Create(wanted)
	if err != nil {
		return state.Attachment{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.rollBack(ctx, a.ID, err))
		}
	}()
	if err := s.waitKernel(ctx, a.ID, revision); err != nil {
		return state.Attachment{}, err
	}
	// With the filter there, what is opened from now on is confined.
	if err := s.confines(t); err != nil {
		return state.Attachment{}, err
	}
	switch {
	case own != nil:
	case r.GetPolicyName() != "":
		err = s.usePolicy(ctx, a.ID, r.GetPolicyName())
	default:
		err = s.opts.Subscriber.Subscribe(ctx, a.ID)
	}
	if err != nil {
		return state.Attachment{}, err
	}
	if from := r.GetInheritLearnedFrom(); from != "" {
		if err := s.opts.Inherit(ctx, from, a.ID); err != nil {
			return state.Attachment{}, fmt.Errorf("inherit_learned_from: %w", err)
		}
	}
	// The caller may be gone by now, and would not learn the id.
	if err := ctx.Err(); err != nil {
		return state.Attachment{}, err
	}
	if err := s.opts.Store.Release(a.ID); err != nil {
		return state.Attachment{}, err
	}
	a, _, err = s.opts.Store.Get(a.ID)
	return a, err
}

// rollBack takes back an attachment, and returns when the kernel has let go of it. It must not be cut short by what
// made it necessary, so it does not end with ctx.
func (s *Server) rollBack(ctx context.Context, id string, why error) error {
	ctx = context.WithoutCancel(ctx)
	revision, err := s.opts.Store.Remove(id, state.ReasonError, why.Error())
	if err == nil {
		err = s.waitKernel(ctx, id, revision)
	}
	if err == nil || errors.Is(err, state.ErrNotFound) {
		return nil
	}
	s.opts.Log.Error("roll-back goes on", "attachment", id, "err", err)
	return fmt.Errorf("roll back %s: %w", id, err)
}

// waitKernel waits for the reconciler alone, which does not need long unless something is wrong.
func (s *Server) waitKernel(ctx context.Context, id string, revision state.Revision) error {
	limited, cancel := context.WithTimeout(ctx, s.opts.KernelTimeout)
	defer cancel()
	err := s.opts.Store.Wait(limited, id, revision)
	if err == nil || ctx.Err() != nil || limited.Err() == nil {
		return err
	}
	why := "see `netfenced status`"
	if _, st, err := s.opts.Store.Get(id); err == nil && st.LastError != nil {
		why = st.LastError.Error()
	}
	return callErrorf(codes.DeadlineExceeded, "the kernel did not follow within %v (%s)", s.opts.KernelTimeout, why)
}

func (s *Server) attachResponse(a state.Attachment, created bool, own *ownPolicy) *netfencev1.AttachResponse {
	response := &netfencev1.AttachResponse{Id: a.ID, Created: created, Warnings: s.warnings(a)}
	if a.Policy.Mode == policy.ModeBlockAll && !a.Pending && !a.OwnPolicy {
		response.Warnings = append(response.Warnings, "its policy is block-all, so nothing passes "+
			"(no policy may have matched its metadata; see `netfenced policy show "+a.ID+"`)")
	}
	if own != nil {
		response.Warnings = append(response.Warnings, own.warnings...)
	}
	response.DnsAddress, response.Nameservers = s.opts.DNS(a.ID)
	return response
}
