// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// Get returns one attachment with what is in force for it, which is not what was asked for last if that was refused.
func (s *Server) Get(_ context.Context, r *netfencev1.GetRequest) (*netfencev1.GetResponse, error) {
	if err := checkUnknown(r); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	a, st, err := s.find(r.GetId(), r.GetKey())
	if err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	inForce := inForce(st)
	update, err := wire.BulkUpdate(inForce, wire.Self())
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", a.ID, err)
	}
	var ref wire.Ref // what is wanted but not in force yet has no name here
	if st.Applied >= a.Revision {
		ref = wire.Ref{Name: a.PolicyName, Revision: a.PolicyRevision}
	}
	info, counters := s.info(a, st)
	response := &netfencev1.GetResponse{
		Attachment:   info,
		Policy:       update,
		Applied:      wire.Applied(ref, inForce, st.LastError),
		Drops:        counters.Drops,
		Direction:    info.GetDirection(),
		Pending:      a.Pending,
		Warnings:     s.warnings(a),
		Key:          a.Key,
		Learned:      learned(s.opts.Learned(a.ID)),
		OwnPolicy:    a.OwnPolicy,
		FlowsUnnoted: counters.FlowsUnnoted,
	}
	if st.InForce != nil && !a.Pending {
		response.Guard = wire.Guard(s.opts.Guard)
	}
	if st.LastError != nil {
		response.LastError = st.LastError.Error()
	}
	return response, nil
}

// maxNames bounds the names of one learned address: a workload that owns a name can have any number of others point
// to the same address, and to each of them as many more.
const maxNames = 8

func learned(list []Learned) []*netfencev1.LearnedAddress {
	addresses := make([]*netfencev1.LearnedAddress, len(list))
	for i, l := range list {
		addresses[i] = &netfencev1.LearnedAddress{
			Address: l.Addr.String(), Names: l.Names[:min(len(l.Names), maxNames)], Ports: wire.PortRanges(l.Ports), Remaining: durationpb.New(l.Remaining),
		}
	}
	return addresses
}

// GetStatus returns the state of the daemon.
func (s *Server) GetStatus(context.Context, *emptypb.Empty) (*netfencev1.DaemonStatus, error) {
	st := s.opts.Status()
	totals, err := s.totals()
	if err != nil {
		st.Problems = append(st.Problems, err.Error())
	}
	return &netfencev1.DaemonStatus{
		Version:             st.Version,
		DaemonId:            st.DaemonID,
		Hostname:            st.Hostname,
		ControlPlaneState:   st.ControlPlaneState,
		ControlPlaneAddress: st.ControlPlaneAddress,
		AttachmentCount:     int32(s.opts.Store.Len()),
		Problems:            s.problems(st.Problems),
		Counters:            totals,
	}, nil
}

func (s *Server) totals() (*netfencev1.Counters, error) {
	if s.opts.Totals == nil {
		return nil, nil
	}
	c, err := s.opts.Totals()
	if err != nil {
		return nil, err
	}
	return &netfencev1.Counters{
		PacketsAllowed: c.PacketsAllowed, PacketsBlocked: c.PacketsBlocked, Drops: c.Drops, WouldDeny: c.WouldDeny,
		DnsQueriesAllowed: c.DNSQueriesAllowed, DnsQueriesBlocked: c.DNSQueriesBlocked, DnsQueriesWouldDeny: c.DNSQueriesWouldDeny,
	}, nil
}

// maxProblems are enough to begin with; a control plane that sends nonsense to everyone makes thousands.
const maxProblems = 100

// problems adds the attachments in trouble to those of the daemon.
func (s *Server) problems(list []string) []string {
	more := 0
	for _, a := range s.opts.Store.List() {
		_, st, err := s.opts.Store.Get(a.ID)
		switch {
		case err != nil || st.LastError == nil:
		case len(list) < maxProblems:
			list = append(list, fmt.Sprintf("attachment %s (%s): %v", a.ID, a.Target, st.LastError))
		default:
			more++
		}
	}
	if more > 0 {
		list = append(list, fmt.Sprintf("%d attachments more are in trouble", more))
	}
	return list
}

// info is the attachment as List has it, and all of its counters.
func (s *Server) info(a state.Attachment, st state.Status) (*netfencev1.AttachmentInfo, Counters) {
	p := inForce(st)
	info := &netfencev1.AttachmentInfo{
		Id:         a.ID,
		Target:     a.Target.Name,
		Type:       netfencev1.AttachmentType_ATTACHMENT_TYPE_CGROUP,
		Mode:       wire.Mode(p.Mode),
		DnsMode:    wire.DNSMode(p.DNS.Mode),
		Metadata:   a.Metadata,
		AttachedAt: timestamppb.New(a.AttachedAt),
	}
	info.DnsAddress, _ = s.opts.DNS(a.ID)
	if a.Target.Type == target.Interface {
		info.Type = netfencev1.AttachmentType_ATTACHMENT_TYPE_TC
		info.Direction = netfencev1.Direction_DIRECTION_INGRESS
		if a.Target.Direction == target.Egress {
			info.Direction = netfencev1.Direction_DIRECTION_EGRESS
		}
	}
	counters, ok := s.opts.Counters(a.ID)
	if !ok { // not in the kernel yet, or no more
		return info, Counters{}
	}
	info.PacketsAllowed, info.PacketsBlocked = counters.PacketsAllowed, counters.PacketsBlocked
	info.DnsQueriesAllowed, info.DnsQueriesBlocked = counters.DNSQueriesAllowed, counters.DNSQueriesBlocked
	info.DnsQueriesWouldDeny = counters.DNSQueriesWouldDeny
	info.Drops, info.WouldDeny = counters.Drops, counters.WouldDeny
	return info, counters
}

// inForce is block-all until the kernel was first seen to hold something else.
func inForce(st state.Status) *policy.Policy {
	if st.InForce == nil {
		return policy.BlockAll()
	}
	return st.InForce
}
