// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"fmt"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// SetMetadata replaces the metadata of an attachment, and has the control plane told, which may decide anew by it. The
// answer does not wait for that: what is in force goes on until then.
func (s *Server) SetMetadata(_ context.Context, r *netfencev1.SetMetadataRequest) (*netfencev1.SetMetadataResponse, error) {
	err := checkUnknown(r)
	if err == nil {
		err = checkMetadata(r.GetMetadata())
	}
	if err != nil {
		return nil, fmt.Errorf("set metadata: %w", err)
	}
	a, _, err := s.find(r.GetId(), r.GetKey())
	if err != nil {
		return nil, fmt.Errorf("set metadata: %w", err)
	}
	if err := s.opts.Store.SetMetadata(a.ID, r.GetMetadata()); err != nil {
		return nil, fmt.Errorf("set metadata of %s: %w", a.ID, err)
	}
	s.opts.Subscriber.Announce(a.ID)
	a, st, err := s.find(a.ID, "")
	if err != nil {
		return nil, fmt.Errorf("set metadata: %w", err)
	}
	info, _ := s.info(a, st)
	return &netfencev1.SetMetadataResponse{Attachment: info}, nil
}
