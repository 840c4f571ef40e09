// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// warnings say what the attachment does not confine and what does not work there, as far as it shows now.
func (s *Server) warnings(a state.Attachment) []string {
	seen := s.occupants(a.Target)
	list := unconfined(seen)
	filtersDNS := a.Policy.Mode != policy.ModeBlockAll && a.Policy.DNS.Mode != policy.DNSDisabled
	if filtersDNS && seen.Elsewhere > 0 {
		list = append(list, fmt.Sprintf("%d processes of the cgroup are in another network namespace, where their names cannot be resolved: "+
			"port 53 is denied to them (the daemon's log says why)", seen.Elsewhere))
	}
	return list
}

// occupants are nobody's for an interface, whose filter has no such limits.
func (s *Server) occupants(t target.Target) target.Occupants {
	if t.Type != target.Cgroup {
		return target.Occupants{}
	}
	return s.opts.Look(t.Name)
}

// unconfined says what passes a cgroup's filter by.
func unconfined(seen target.Occupants) []string {
	var list []string
	if seen.Capable > 0 {
		list = append(list, fmt.Sprintf("%d processes of the cgroup have CAP_NET_ADMIN, CAP_NET_RAW or CAP_BPF: "+
			"tunnels and packet sockets of theirs pass the filter by (drop these capabilities)", seen.Capable))
	}
	if seen.Connected > 0 {
		list = append(list, fmt.Sprintf("%d processes of the cgroup hold sockets that were opened before they joined it, and that pass the filter by "+
			"(start them in the cgroup)", seen.Connected))
	}
	if seen.More {
		list = append(list, "the cgroup has too many processes or sockets to look at each (attach before they start)")
	}
	return list
}

// confines refuses what warnings would only tell of, where the daemon is strict.
func (s *Server) confines(t target.Target) error {
	if !s.opts.Strict {
		return nil
	}
	reasons := unconfined(s.occupants(t))
	if len(reasons) == 0 {
		return nil
	}
	return callErrorf(codes.FailedPrecondition, "not confined, and the configuration is strict: %s", strings.Join(reasons, "; "))
}
