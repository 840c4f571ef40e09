// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/dnsproxy"
	"github.com/netfence/netfence/internal/intercept"
)

// dns answers the queries of attachments.
type dns struct {
	server *dnsproxy.Server
	fronts []*intercept.Front // for cgroups, then for interfaces
	// elsewhere answers cgroups' processes in other network namespaces.
	elsewhere *intercept.Elsewhere
	// failed is why there is no front for interfaces, whose queries are then dropped; nil: there is one.
	failed error
}

// openDNS opens the sockets, before anything is attached: an attachment has its DNS address from its first instant, and
// none waits for a namespace to be made.
func (d *daemon) openDNS() error {
	cgroups, err := intercept.OpenCgroups(d.kernel)
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	d.dns.fronts = append(d.dns.fronts, cgroups)
	interfaces, err := intercept.OpenInterfaces(d.kernel)
	if err != nil {
		d.log.Warn("names are not resolved for interfaces", "err", err)
		d.dns.failed = fmt.Errorf("dns for interfaces, whose queries are dropped: %w", err)
		return nil
	}
	d.dns.fronts = append(d.dns.fronts, interfaces)
	return nil
}

func (d *daemon) newDNSServer() (err error) {
	c := d.config.DNS
	d.dns.server, err = dnsproxy.New(dnsproxy.Options{
		Kernel:    d.kernel,
		Remote:    remote{d.control.client},
		Upstreams: dnsproxy.Upstreams(c.Upstreams),
		Forward:   c.Forward,
		Control:   func(_, _ string, conn syscall.RawConn) error { return d.kernel.Exempt(conn) },
		MinTTL:    c.MinTTL, MaxTTL: c.MaxTTL,
		RefuseWith:          c.RefuseWith,
		AllowPrivateAnswers: c.AllowPrivateAnswers,
		CacheBytes:          c.CacheBytes,
		ServeStale:          c.ServeStale,
		MaxQueries:          d.config.Limits.Queries,
		Events:              d.hub.Publish,
		Settled:             d.reconciler.CaughtUp(),
		Log:                 d.log,
	})
	if err != nil {
		return err
	}
	serve := func(ctx context.Context, f *intercept.Front) error { return f.Serve(ctx, d.dns.server) }
	d.dns.elsewhere, err = intercept.NewElsewhere(d.kernel, d.dns.fronts[0], serve, d.log)
	return err
}

// serveDNS answers until ctx is done. What is learned holds, and expires, in the kernel.
func (d *daemon) serveDNS(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range d.dns.fronts {
		g.Go(func() error { return f.Serve(ctx, d.dns.server) })
	}
	return g.Wait()
}

func (d *dns) close() error {
	var errs []error
	for _, f := range d.fronts {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// remote is the control plane in the words of the DNS server.
type remote struct{ client *controlclient.Client }

func (r remote) QueryDNS(ctx context.Context, id, name, qtype string) (dnsproxy.RemoteAnswer, error) {
	a, err := r.client.QueryDNS(ctx, id, name, qtype)
	if err != nil {
		return dnsproxy.RemoteAnswer{}, err
	}
	return dnsproxy.RemoteAnswer{Allow: a.Allow, Learn: a.Learn, Addrs: a.Addrs, TTL: a.TTL}, nil
}
