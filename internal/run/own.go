// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/dnsproxy"
	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// own is a fence without a daemon: programs, pins and a DNS server of this process.
//
// The pins are what keeps the filter until the last process of the command has ended: the kernel closes a dying
// process's files, and with them links that are not pinned, before it kills its children.
type own struct {
	config *config.Config
	id     string
	tally  *tally

	loaded  chan error // the end of load, until somebody has taken it
	kernel  *datapath.Datapath
	front   *intercept.Front
	stop    context.CancelFunc // of the server
	served  chan error         // its end
	unwatch func()             // ends what watch began
}

func newOwn(c *config.Config, id string, t *tally) *own {
	return &own{config: c, id: id, tally: t}
}

func (o *own) pins() string { return filepath.Join(o.config.BPFDir, pinsName(o.id)) }

// prepare begins to load the programs, which takes longest.
func (o *own) prepare() {
	o.loaded = make(chan error, 1)
	go func() { o.loaded <- o.load() }()
}

func (o *own) load() (err error) {
	if err := datapath.EnsureBPFFS(o.config.BPFDir); err != nil {
		return err
	}
	limits, dns := o.config.Limits, o.config.DNS
	o.kernel, err = datapath.Open(datapath.Config{
		Dir: o.pins(), MaxFlows: uint64(limits.Flows), MaxLearned: limits.Learned, MaxNames: limits.Names,
		Grace: dns.Grace, MaxFlowTCP: dns.MaxFlowTCP, MaxFlowOther: dns.MaxFlowOther,
		Events: o.tally.add, EventRate: o.config.Events.Rate,
		Only: datapath.Cgroups, MaxAttachments: 1,
	})
	return err
}

// await returns when load has; it may be called again.
func (o *own) await() error {
	if o.loaded == nil {
		return nil
	}
	err := <-o.loaded
	o.loaded = nil
	return err
}

func (o *own) enforce(_ context.Context, path string, p *policy.Policy) error {
	now, err := datapath.BootClock()
	if err != nil {
		return err
	}
	compiled, err := p.Settle(nil, now, time.Now()).CompileWith(o.config.Guard)
	if err != nil {
		return err
	}
	if err := o.await(); err != nil {
		return err
	}
	t, err := target.ResolveCgroup(path)
	if err != nil {
		return err
	}
	if err := o.kernel.Attach(o.id, t); err != nil {
		return err
	}
	if compiled.Names.Intercepts() {
		if err := o.serve(); err != nil {
			return err
		}
	}
	if err := o.kernel.Replace(o.id, compiled); err != nil {
		return err
	}
	o.watch()
	return nil
}

// watch has put back what somebody takes away from the cgroup.
func (o *own) watch() {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	o.unwatch = func() { stop(); <-ended }
	go func() {
		defer close(ended)
		o.kernel.Watch(ctx, func(string, error) {}) // the cgroup goes with the run
	}()
}

// serve answers the command's DNS queries.
func (o *own) serve() (err error) {
	dns := o.config.DNS
	server, err := dnsproxy.New(dnsproxy.Options{
		Kernel: o.kernel, Upstreams: dnsproxy.Upstreams(dns.Upstreams), Forward: dns.Forward, MinTTL: dns.MinTTL, MaxTTL: dns.MaxTTL,
		RefuseWith: dns.RefuseWith, AllowPrivateAnswers: dns.AllowPrivateAnswers,
		CacheBytes: dns.CacheBytes, ServeStale: dns.ServeStale,
		MaxQueries: o.config.Limits.Queries, Events: o.tally.add,
	})
	if err != nil {
		return err
	}
	if o.front, err = intercept.OpenCgroups(o.kernel); errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (the cgroup in which this runs is filtered, and names are its daemon's: start that, or run from another cgroup)", err)
	} else if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	o.stop, o.served = stop, make(chan error, 1)
	go func() { o.served <- o.front.Serve(ctx, server) }() // if it fails, queries fail from then on, and nothing opens
	return nil
}

func (o *own) close() error {
	_ = o.await() // what it has made is removed below
	var errs []error
	if o.unwatch != nil {
		o.unwatch()
	}
	if o.stop != nil {
		o.stop()
		errs = append(errs, <-o.served)
	}
	if o.front != nil {
		errs = append(errs, o.front.Close())
	}
	if o.kernel != nil {
		errs = append(errs, o.kernel.DrainEvents(), o.kernel.Detach(o.id), o.kernel.Close())
	}
	if err := datapath.RemoveAll(o.pins()); err != nil {
		errs = append(errs, fmt.Errorf("pins of the run: %w", err))
	}
	return errors.Join(errs...)
}
