// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/wire"
)

// maxNamesTold bounds the names in an error.
const maxNamesTold = 8

// checkPolicyName refuses a name that nothing stands for. Empty: none was given.
func (s *Server) checkPolicyName(name string) error {
	switch {
	case name == "":
		return nil
	case s.opts.Embedded:
		return callErrorf(codes.FailedPrecondition,
			"policy_name: the policies of a folder have no names to attach by (give metadata that one matches, or policy)")
	case len(name) > wire.MaxName:
		return callErrorf(codes.InvalidArgument, "policy_name: longer than %d bytes", wire.MaxName)
	}
	if _, ok := s.opts.Store.NamedPolicy(name); ok {
		return nil
	}
	return s.noPolicy(name)
}

func (s *Server) noPolicy(name string) error {
	has := "it has sent none by name"
	if all := s.opts.Store.NamedPolicies(); len(all) > 0 {
		var names []string
		for _, n := range all[:min(len(all), maxNamesTold)] {
			names = append(names, n.Name)
		}
		has = "it has sent " + strings.Join(names, ", ")
		if len(all) > maxNamesTold {
			has += ", …"
		}
	}
	return callErrorf(codes.NotFound, "policy_name: the control plane has sent no policy %q (%s)", name, has)
}

// usePolicy puts a new attachment under a named policy that the daemon holds, whether or not the control plane that sent
// it is there, and tells it.
func (s *Server) usePolicy(ctx context.Context, id, name string) error {
	revision, err := s.opts.Store.Apply(id, caller, state.Change{Use: name, Acknowledge: true})
	if errors.Is(err, state.ErrNoPolicy) { // it went meanwhile
		return s.noPolicy(name)
	}
	if err == nil {
		err = s.waitKernel(ctx, id, revision)
	}
	if err == nil {
		s.opts.Subscriber.Announce(id)
	}
	return err
}
