// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
)

const (
	defaultPage = 100
	maxPage     = 1000
	// maxPageBytes ends a page early: stock gRPC clients refuse messages above 4 MiB, and metadata may be long.
	maxPageBytes = 3 << 20
)

// List returns attachments by the time of their attach. A page begins after the last attachment of the one before,
// wherever that stood, so attaching and detaching between two pages repeats and skips nothing else.
func (s *Server) List(_ context.Context, r *netfencev1.ListRequest) (*netfencev1.ListResponse, error) {
	size := int(r.GetPageSize())
	switch {
	case size < 0:
		return nil, callErrorf(codes.InvalidArgument, "list: page_size %d is negative", size)
	case size == 0:
		size = defaultPage
	case size > maxPage:
		size = maxPage
	}
	after, err := parseToken(r.GetPageToken())
	if err != nil {
		return nil, err
	}
	all := s.opts.Store.List()
	response := &netfencev1.ListResponse{TotalCount: int32(len(all))}
	bytes := 0
	for _, a := range all {
		if !after.before(a) {
			continue
		}
		_, st, err := s.opts.Store.Get(a.ID)
		if errors.Is(err, state.ErrNotFound) {
			continue // gone since the list was taken
		}
		if err != nil {
			return nil, err
		}
		info, _ := s.info(a, st)
		bytes += proto.Size(info)
		if n := len(response.Attachments); n == size || n > 0 && bytes > maxPageBytes {
			response.NextPageToken = after.token()
			break
		}
		after = cursor{a.AttachedAt, a.ID}
		response.Attachments = append(response.Attachments, info)
	}
	return response, nil
}

// cursor is a place in the order of attachments; the zero value is before the first.
type cursor struct {
	at time.Time
	id string
}

func (c cursor) before(a state.Attachment) bool {
	if !a.AttachedAt.Equal(c.at) {
		return c.at.Before(a.AttachedAt)
	}
	return c.id < a.ID
}

func (c cursor) token() string {
	return base64.RawURLEncoding.EncodeToString([]byte(c.at.UTC().Format(time.RFC3339Nano) + " " + c.id))
}

func parseToken(token string) (cursor, error) {
	if token == "" {
		return cursor{}, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		at, id, _ := strings.Cut(string(text), " ")
		var t time.Time
		if t, err = time.Parse(time.RFC3339Nano, at); err == nil {
			return cursor{t, id}, nil
		}
	}
	return cursor{}, callErrorf(codes.InvalidArgument, "list: page_token is not one that this daemon gave (start from the first page)")
}
