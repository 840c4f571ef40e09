// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/target"
)

// checkAttach refuses what this daemon cannot honour in full. A field that it does not know may be one that narrows,
// so it is not passed over.
func checkAttach(r *netfencev1.AttachRequest) error {
	if err := checkUnknown(r); err != nil {
		return err
	}
	if r.GetPolicyName() != "" && r.GetPolicy() != nil {
		return callErrorf(codes.InvalidArgument, "policy_name does not go with policy (leave one of them out)")
	}
	return checkMetadata(r.GetMetadata())
}

// checkHeir wants an attachment to inherit from, if one is named.
func (s *Server) checkHeir(from string) error {
	if from == "" {
		return nil
	}
	if _, _, err := s.opts.Store.Get(from); err != nil {
		return callErrorf(codes.NotFound, "inherit_learned_from: no attachment %s (see `netfenced list`)", from)
	}
	return nil
}

func checkUnknown(m proto.Message) error {
	if unknown := m.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		return callErrorf(codes.Unimplemented, "the request has fields that this daemon does not know (upgrade it)")
	}
	return nil
}

// checkMetadata refuses names that cannot be printed in a table; their sum is the store's to bound.
func checkMetadata(metadata map[string]string) error {
	for name := range metadata {
		if name == "" {
			return callErrorf(codes.InvalidArgument, "metadata: a name is empty")
		}
		if strings.ContainsFunc(name, unicode.IsControl) {
			return callErrorf(codes.InvalidArgument, "metadata: name %q has control characters", name)
		}
	}
	return nil
}

// resolve finds the target that the request names.
func (s *Server) resolve(r *netfencev1.AttachRequest) (target.Target, error) {
	direction, ok := directions[r.GetDirection()]
	if !ok {
		return target.Target{}, callErrorf(codes.InvalidArgument, "unknown direction %d", r.GetDirection())
	}
	if name, ok := r.GetTarget().(*netfencev1.AttachRequest_InterfaceName); ok {
		return s.opts.Resolver.Interface(name.InterfaceName, direction, r.GetNetns())
	}
	if direction != target.DirectionAuto || r.GetNetns() != "" {
		return target.Target{}, callErrorf(codes.InvalidArgument, "direction and netns are for interfaces (leave them out)")
	}
	switch t := r.GetTarget().(type) {
	case *netfencev1.AttachRequest_CgroupPath:
		return s.opts.Resolver.Cgroup(t.CgroupPath)
	case *netfencev1.AttachRequest_Pid:
		return s.opts.Resolver.PID(int(t.Pid))
	default:
		return target.Target{}, callErrorf(codes.InvalidArgument, "no target (name an interface, a cgroup path or a pid)")
	}
}

var directions = map[netfencev1.Direction]target.Direction{
	netfencev1.Direction_DIRECTION_UNSPECIFIED: target.DirectionAuto,
	netfencev1.Direction_DIRECTION_INGRESS:     target.Ingress,
	netfencev1.Direction_DIRECTION_EGRESS:      target.Egress,
}
