// SPDX-License-Identifier: Apache-2.0

// Package daemon puts the parts together, starts them in the order in which they need each other, and stops them the
// other way round. It decides nothing itself.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	"github.com/netfence/netfence/internal/cached"
	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/localapi"
	"github.com/netfence/netfence/internal/reconciler"
	"github.com/netfence/netfence/internal/run"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// stopTimeout is how long calls under way may take when the daemon stops, before they are rolled back.
const stopTimeout = 5 * time.Second

// daemon is everything that is open while the daemon runs.
type daemon struct {
	config *config.Config
	log    *slog.Logger

	lock     *os.File
	listener net.Listener
	kernel   *datapath.Datapath
	store    *state.Store
	watcher  *target.Watcher
	hub      *events.Hub
	dns      dns
	metrics  net.Listener  // nil: off
	cache    *cached.Cache // nil: nothing attaches with it

	control    *controlPlane
	reconciler *reconciler.Reconciler
	api        *localapi.Server
}

// Run runs the daemon until ctx is done. What is attached stays filtered when it returns, whatever the reason.
func Run(ctx context.Context, c *config.Config, version string, logTo io.Writer) (err error) {
	log := slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: c.LogLevel}))
	for _, warning := range c.Warnings {
		log.Warn("configuration", "warning", warning)
	}
	d := &daemon{config: c, log: log, hub: events.NewHub(c.Events.Rate)}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := d.assemble(version); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return runStages(ctx, d.stages(version), func() {
		log.Info("started", "version", version, "socket", c.Socket, "attachments", d.store.Len())
		d.notify("READY=1")
		context.AfterFunc(ctx, func() { d.notify("STOPPING=1") })
	})
}

// open takes hold of what outlives a daemon. The lock and the socket come first: where another daemon runs, nothing of
// its is touched.
func (d *daemon) open(ctx context.Context) (err error) {
	if err := checkPrivileges(); err != nil {
		return err
	}
	if d.lock, err = lock(d.config.RunDir); err != nil {
		return err
	}
	if d.listener, err = localapi.Listen(ctx, d.config.Socket, d.config.SocketGroup); err != nil {
		return err
	}
	if err = datapath.EnsureBPFFS(d.config.BPFDir); err != nil {
		return err
	}
	if err := run.Sweep(d.config.RunDir); err != nil {
		d.log.Warn("leftovers of a killed run", "err", err)
	}
	if d.store, err = openStore(d.config, d.log); err != nil {
		return err
	}
	d.kernel, err = datapath.Open(datapath.Config{
		Dir: d.config.BPFDir, MaxFlows: uint64(d.config.Limits.Flows), Log: d.log,
		MaxLearned: d.config.Limits.Learned, MaxNames: d.config.Limits.Names, Grace: d.config.DNS.Grace,
		MaxFlowTCP: d.config.DNS.MaxFlowTCP, MaxFlowOther: d.config.DNS.MaxFlowOther,
		Events: d.hub.Publish, EventRate: d.config.Events.Rate,
		InterfaceHook: interfaceHooks[d.config.InterfaceHook],
	})
	if err != nil {
		return err
	}
	if err = d.openLease(); err != nil {
		return err
	}
	if err = d.openCache(); err != nil {
		return err
	}
	if err = d.openDNS(); err != nil {
		return err
	}
	if err = d.openMetrics(ctx); err != nil {
		return err
	}
	d.watcher, err = target.NewWatcher(d.log)
	return err
}

var interfaceHooks = map[config.InterfaceHook]datapath.InterfaceHook{
	config.HookAuto: datapath.HookAuto, config.HookTCX: datapath.HookTCX, config.HookClsact: datapath.HookClsact,
}

func openStore(c *config.Config, log *slog.Logger) (*state.Store, error) {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("boot id: %w", err)
	}
	return state.Open(filepath.Join(c.RunDir, stateFile), strings.TrimSpace(string(bootID)), state.Options{
		Limits: state.Limits{
			Attachments: c.Limits.Attachments, MetadataBytes: c.Limits.MetadataBytes, Policy: policy.Limits{Rules: c.Limits.Rules},
		},
		Guard: c.Guard, Log: log,
	})
}

// assemble makes the parts that run.
func (d *daemon) assemble(version string) error {
	id := d.config.DaemonID
	if id == "" {
		var err error
		if id, err = daemonID(d.config.DataDir, "/etc/machine-id"); err != nil {
			return err
		}
	}
	instance := uuid.NewString()
	hostname, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	d.control, err = newControlPlane(d.config, controlclient.Options{
		Store: d.store, DaemonID: id, InstanceID: instance, Hostname: hostname, Counters: d.heartbeat, DNSAddress: d.kernel.DNSAddress,
		Cached: d.cached,
	}, d.kernel, d.log)
	if err != nil {
		return err
	}
	d.reconciler = reconciler.New(d.store, filter{d.kernel, &d.dns, d.leased}, reconciler.Options{
		Permanent: func(err error) bool { return errors.Is(err, datapath.ErrFull) },
		Vanished:  func(err error) bool { return errors.Is(err, datapath.ErrVanished) },
		Log:       d.log,
	})
	if err := d.newDNSServer(); err != nil {
		return err
	}
	d.api = localapi.New(localapi.Options{
		Store: d.store, Subscriber: d.control, Resolver: resolver{}, Counters: d.counters, Totals: d.totals, DNS: d.nameservers, Learned: d.learned, Inherit: d.inherit,
		Events: d.hub, InstanceID: instance, Log: d.log,
		Status: func() localapi.Status {
			s := localapi.Status{Version: version, DaemonID: id, Hostname: hostname}
			d.control.report(&s)
			d.reportOrphans(&s)
			d.reportLease(&s)
			s.Problems = append(s.Problems, d.kernel.Problems()...)
			if d.dns.failed != nil {
				s.Problems = append(s.Problems, d.dns.failed.Error())
			}
			return s
		},
		Embedded: d.control.folder != nil, Boot: datapath.BootClock, Blocked: d.leaseOver,
		Look: d.look, DetachOrphans: d.reconciler.DetachOrphans, Guard: d.config.Guard, Strict: d.config.Strict,
	})
	return nil
}

// stages are what runs, the foundations first.
func (d *daemon) stages(version string) []stage {
	t := &targets{store: d.store, watcher: d.watcher, events: d.hub.Publish, log: d.log, watched: make(map[string]target.Target)}
	stages := []stage{
		{"reconciler", d.reconciler.Run},
		{"watch targets", t.run},
		{"watch attachments", d.caughtUp(d.watchAttachments)},
		{"dns", d.serveDNS},
		{"dns in other namespaces", d.caughtUp(d.watchElsewhere)},
		{"memory", thrift},
	}
	if d.control.folder != nil {
		stages = append(stages, stage{"policy folder", d.control.folder.Run})
	}
	if d.metrics != nil {
		stages = append(stages, stage{"metrics", d.caughtUp(func(ctx context.Context) error { return d.serveMetrics(ctx, version) })})
	}
	if d.cache != nil {
		stages = append(stages, stage{"policy cache", d.caughtUp(d.cachePolicies)})
	}
	if d.config.ControlPlane.BlockAfter > 0 {
		stages = append(stages, stage{"lease", d.renewLease})
	}
	return append(stages,
		stage{"control plane", d.caughtUp(d.control.client.Run)},
		stage{"local api", d.caughtUp(d.serve)})
}

// caughtUp has run begin when it is known what is in force: before that, whoever asks would hear of block-all, and a
// control plane would send again what is there.
func (d *daemon) caughtUp(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-d.reconciler.CaughtUp():
			return run(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (d *daemon) serve(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- d.api.Serve(d.listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	d.api.Stop(timeout)
	if err := <-failed; !errors.Is(err, grpc.ErrServerStopped) { // which is what it says when it was stopped before it began
		return err
	}
	return nil
}

func (d *daemon) notify(state string) {
	if err := notify(state); err != nil {
		d.log.Warn("service manager not notified", "err", err)
	}
}

// close releases what open took, in reverse. The kernel goes on filtering.
func (d *daemon) close() error {
	var errs []error
	if d.watcher != nil {
		errs = append(errs, d.watcher.Close())
	}
	errs = append(errs, d.dns.close(), d.closeMetrics())
	if d.kernel != nil {
		errs = append(errs, d.kernel.Close())
	}
	d.hub.Close() // after who publishes
	if d.cache != nil {
		errs = append(errs, d.cache.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	if d.listener != nil {
		if err := d.listener.Close(); !errors.Is(err, net.ErrClosed) { // the local API has closed it if it ran
			errs = append(errs, err)
		}
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}
