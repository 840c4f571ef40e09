// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
)

// Detach ends one attachment, or all, and answers when the kernel has let go. A caller who does not wait for the
// answer has detached all the same.
func (s *Server) Detach(ctx context.Context, r *netfencev1.DetachRequest) (*emptypb.Empty, error) {
	if err := checkUnknown(r); err != nil {
		return nil, fmt.Errorf("detach: %w", err)
	}
	if r.GetAll() {
		if r.GetId() != "" || r.GetKey() != "" {
			return nil, callErrorf(codes.InvalidArgument, "detach: all stands alone (leave id and key out)")
		}
		return &emptypb.Empty{}, s.detachAll(ctx)
	}
	a, _, err := s.find(r.GetId(), r.GetKey())
	if err == nil {
		err = s.remove(ctx, a.ID)
	}
	if errors.Is(err, state.ErrNotFound) && r.GetMissingOk() {
		return &emptypb.Empty{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("detach: %w", err)
	}
	return &emptypb.Empty{}, nil
}

// remove ends one attachment; one that is gone meanwhile is ErrNotFound only if it was gone before.
func (s *Server) remove(ctx context.Context, id string) error {
	revision, err := s.opts.Store.Remove(id, state.ReasonDetached, "")
	if err != nil {
		return err
	}
	err = s.waitKernel(ctx, id, revision)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	return err
}

// detachAll marks every attachment before it waits for the first, so that they go side by side.
func (s *Server) detachAll(ctx context.Context) error {
	revisions := make(map[string]state.Revision)
	var errs []error
	for _, a := range s.opts.Store.List() {
		revision, err := s.opts.Store.Remove(a.ID, state.ReasonDetached, "")
		switch {
		case err == nil:
			revisions[a.ID] = revision
		case !errors.Is(err, state.ErrNotFound):
			errs = append(errs, fmt.Errorf("detach %s: %w", a.ID, err))
		}
	}
	for id, revision := range revisions {
		if err := s.waitTurn(ctx, id, revision); err != nil && !errors.Is(err, state.ErrNotFound) {
			errs = append(errs, fmt.Errorf("detach %s: %w", id, err))
		}
	}
	if s.opts.DetachOrphans != nil {
		errs = append(errs, s.opts.DetachOrphans())
	}
	return errors.Join(errs...)
}

// waitTurn is waitKernel for one of many: as long as others go, its turn may come.
func (s *Server) waitTurn(ctx context.Context, id string, revision state.Revision) error {
	for {
		left := s.opts.Store.Len()
		err := s.waitKernel(ctx, id, revision)
		var late *callError
		if !errors.As(err, &late) || s.opts.Store.Len() >= left {
			return err
		}
	}
}

// find looks up by exactly one of id and key.
func (s *Server) find(id, key string) (state.Attachment, state.Status, error) {
	switch {
	case (id == "") == (key == ""):
		return state.Attachment{}, state.Status{}, callErrorf(codes.InvalidArgument, "name one attachment, by id or by key")
	case id != "":
		a, st, err := s.opts.Store.Get(id)
		if err != nil {
			return a, st, fmt.Errorf("attachment %s: %w (see `netfenced list`)", id, err)
		}
		return a, st, nil
	}
	a, ok := s.opts.Store.ByKey(key)
	if !ok {
		return state.Attachment{}, state.Status{}, fmt.Errorf("attachment with key %s: %w (see `netfenced list`)", key, state.ErrNotFound)
	}
	return s.find(a.ID, "")
}
