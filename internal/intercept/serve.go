// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/netfence/netfence/internal/dnsproxy"
)

// Serve has s answer on every socket of the front until ctx ends, which closes
// them, or until one of them fails, which ends the others.
func (f *Front) Serve(ctx context.Context, s *dnsproxy.Server) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range f.Packets {
		g.Go(func() error { return s.Serve(ctx, c) })
	}
	for _, l := range f.Streams {
		g.Go(func() error { return s.ServeTCP(ctx, l) })
	}
	return g.Wait()
}
