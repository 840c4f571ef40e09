// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
)

// look tells who is in a cgroup, and has the names of those in other network namespaces resolved. Who is left there is
// refused.
func (d *daemon) look(cgroup string) target.Occupants {
	seen := target.Look(cgroup)
	if seen.Elsewhere == 0 {
		return seen
	}
	t, err := target.ResolveCgroup(cgroup)
	if err != nil {
		return seen // it has just been removed
	}
	if a, ok := d.store.ByTarget(t); ok {
		seen.Elsewhere = d.lookElsewhere(a)
	}
	return seen
}

func (d *daemon) lookElsewhere(a state.Attachment) (refused int) {
	index, ok := d.kernel.Index(a.ID)
	if !ok || a.Target.Type != target.Cgroup {
		return 0
	}
	refused, err := d.dns.elsewhere.Look(a.Target.Name, index)
	if err != nil {
		d.log.Warn("names are not resolved in another network namespace", "attachment", a.ID, "target", a.Target.Name, "processes", refused, "err", err)
	}
	return refused
}

// watchElsewhere looks at every cgroup once, and at those again of which a query was refused: a process that has gone
// to another network namespace since is refused once, and answered from then on.
func (d *daemon) watchElsewhere(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.dns.elsewhere.Run(ctx) })
	g.Go(func() error {
		denied := d.hub.SubscribeFlows()
		defer denied.Close()
		for _, a := range d.store.List() {
			d.lookElsewhere(a)
		}
		for {
			batch, _, err := denied.Next(ctx)
			if err != nil {
				return nil //nolint:nilerr // ctx is done, or the hub is closed
			}
			ids := make(map[string]bool)
			for _, e := range batch {
				if e.Flow != nil && e.Flow.Reason == datapath.ReasonDNS {
					ids[e.Attachment] = true
				}
			}
			for id := range ids {
				if a, _, err := d.store.Get(id); err == nil {
					d.lookElsewhere(a)
				}
			}
		}
	})
	return g.Wait()
}
