// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// Explain judges a packet by what is in force, as the kernel would. No packet is sent, and no name is asked for.
func (s *Server) Explain(_ context.Context, r *netfencev1.ExplainRequest) (*netfencev1.ExplainResponse, error) {
	if err := checkUnknown(r); err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	packet, err := readPacket(r)
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	a, st, err := s.find(r.GetId(), r.GetKey())
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	switch blocked := s.opts.Blocked(a.ID); {
	case a.Pending:
		return &netfencev1.ExplainResponse{Reason: "pending: the attachment has no policy yet, and is closed"}, nil
	case st.InForce == nil:
		return &netfencev1.ExplainResponse{Reason: "what is in force is not known yet (ask again)"}, nil
	case blocked != "":
		return &netfencev1.ExplainResponse{Reason: blocked}, nil
	}
	boot, err := s.opts.Boot()
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	live := policy.Live{Guard: s.opts.Guard, Boot: boot, Cgroup: a.Target.Type == target.Cgroup}
	for _, l := range s.opts.Learned(a.ID) {
		live.Opened = append(live.Opened, policy.Opened(l))
	}
	e := st.InForce.ExplainLive(live, packet)
	response := &netfencev1.ExplainResponse{Allow: e.Action == policy.Allow, Rule: e.Rule, Reason: e.Reason}
	if e.Rule != "" {
		response.List = e.List.String()
	}
	return response, nil
}

func readPacket(r *netfencev1.ExplainRequest) (policy.Packet, error) {
	packet, err := policy.ParseDestination(r.GetDestination())
	switch {
	case err != nil:
		return packet, callErrorf(codes.InvalidArgument, "destination: %v", err)
	case !packet.Flow.Portless:
		return packet, callErrorf(codes.InvalidArgument, "destination %q has a port (say it in port)", r.GetDestination())
	case r.GetPort() > 65535:
		return packet, callErrorf(codes.InvalidArgument, "port %d is above 65535", r.GetPort())
	}
	packet.Flow.Port = uint16(r.GetPort())
	packet.Flow.Portless = packet.Flow.Port == 0
	switch r.GetProtocol() {
	case netfencev1.Protocol_PROTOCOL_UNSPECIFIED, netfencev1.Protocol_PROTOCOL_TCP:
	case netfencev1.Protocol_PROTOCOL_UDP:
		packet.Flow.Protocol = policy.UDP
	default:
		return packet, callErrorf(codes.InvalidArgument, "unknown protocol %d", r.GetProtocol())
	}
	return packet, nil
}
