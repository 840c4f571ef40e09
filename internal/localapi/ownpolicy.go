// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// caller names in the state who gave a refused policy.
const caller = "its caller"

// ownPolicy is a policy that a caller of the local API gives, and what was adjusted in it.
type ownPolicy struct {
	policy   *policy.Policy
	warnings []string
}

// policyError refuses the policy in the request's field of that name.
type policyError struct {
	field string
	err   error
}

func (e *policyError) Error() string { return e.field + ": " + e.err.Error() }

func (e *policyError) Unwrap() error { return e.err }

// readPolicy judges a policy whole, before anything is done. Nil: none was given.
func (s *Server) readPolicy(m *netfencev1.BulkUpdate) (*ownPolicy, error) {
	if m == nil {
		return nil, nil
	}
	p, warnings, err := wire.PolicyFrom(m)
	if err == nil && p.DNS.Mode == policy.DNSProxy {
		err = &policy.InvalidError{
			Field: "dns.mode", Value: p.DNS.Mode.String(),
			Reason: "the control plane decides in proxy mode, and is not told of this attachment (use allowlist or denylist)",
		}
	}
	if err == nil {
		err = s.opts.Store.Check(p)
	}
	if err != nil {
		return nil, &policyError{"policy", err}
	}
	return &ownPolicy{p, warnings}, nil
}

// renew puts the policy of a repeated Attach in force: it may be another one by now. What the request and the
// attachment say of whose policy it is must agree, or the caller would believe in one that is not in force. It brings a
// up to date.
func (s *Server) renew(ctx context.Context, a *state.Attachment, own *ownPolicy, dryRun bool) error {
	switch {
	case own == nil && a.OwnPolicy:
		return callErrorf(codes.FailedPrecondition,
			"attach %s: attachment %s of key %s was given a policy of its own (give one, or detach that attachment)", a.Target, a.ID, a.Key)
	case own != nil && !a.OwnPolicy:
		return callErrorf(codes.FailedPrecondition,
			"attach %s: attachment %s of key %s has its policy from the control plane (give none, or detach that attachment)",
			a.Target, a.ID, a.Key)
	case own == nil, dryRun:
		return nil
	}
	err := s.applyOwn(ctx, a.ID, own)
	if err == nil {
		*a, _, err = s.opts.Store.Get(a.ID)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", a.Target, err)
	}
	return nil
}

func (s *Server) applyOwn(ctx context.Context, id string, own *ownPolicy) error {
	revision, err := s.opts.Store.Apply(id, caller, state.Change{Edit: state.Replace(own.policy)})
	if err != nil {
		return err
	}
	return s.waitKernel(ctx, id, revision)
}

// SetPolicy replaces the policy of an attachment that was attached with one, and answers when it is in force.
func (s *Server) SetPolicy(ctx context.Context, r *netfencev1.SetPolicyRequest) (*netfencev1.SetPolicyResponse, error) {
	if err := checkUnknown(r); err != nil {
		return nil, fmt.Errorf("set policy: %w", err)
	}
	a, _, err := s.find(r.GetId(), r.GetKey())
	if err != nil {
		return nil, fmt.Errorf("set policy: %w", err)
	}
	if !a.OwnPolicy {
		return nil, callErrorf(codes.FailedPrecondition,
			"set policy: attachment %s has its policy from the control plane (change it there)", a.ID)
	}
	own, err := s.readPolicy(r.GetPolicy())
	if err == nil && own == nil {
		err = callErrorf(codes.InvalidArgument, "policy is missing")
	}
	if err == nil {
		err = s.applyOwn(ctx, a.ID, own)
	}
	if err != nil {
		return nil, fmt.Errorf("set policy of %s: %w", a.ID, err)
	}
	return &netfencev1.SetPolicyResponse{Applied: wire.Applied(wire.Ref{}, own.policy, nil), Warnings: own.warnings}, nil
}
