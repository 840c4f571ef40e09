// SPDX-License-Identifier: Apache-2.0

// Package fleet is netfence-control, the control plane for many hosts: policy files in a folder or in etcd, decided as the
// daemon's own folder mode decides, and handed out by package controlplane. It keeps no state of its own: any number of
// servers may share one etcd behind any load balancer.
//
// Who may be a daemon and who may administer are told apart by listener and by credential.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/folder"
)

const (
	// maxCommandBytes is what a daemon takes; a policy beyond is broken.
	maxCommandBytes = 16 << 20
	// drainTimeout is what the daemons have to answer what was sent to them when the server stops.
	drainTimeout = 10 * time.Second
	stopTimeout  = time.Second
	// reauthorizeEvery is how long a stream may stand after its credentials were taken back, beside rotation.
	reauthorizeEvery = 5 * time.Second
)

// Server is a server whose ports are open.
type Server struct {
	log    *slog.Logger
	source *folder.Source
	store  store
	plane  *controlplane.ControlPlane

	daemons net.Listener
	grpc    *grpc.Server
	admins  net.Listener
	http    *http.Server
}

// Run serves until ctx is done; then it sends the daemons to another server, and returns nil.
func Run(ctx context.Context, c *Config, version string, logTo io.Writer) error {
	log := slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: c.LogLevel}))
	s, err := Open(c, version, log)
	if err != nil {
		return err
	}
	log.Info("netfence-control serves", "version", version, "daemons", s.Address(), "api", s.APIAddress())
	return s.Serve(ctx)
}

// Open opens the ports and reads the credentials. The caller must Serve.
func Open(c *Config, version string, log *slog.Logger) (*Server, error) {
	s := &Server{log: log}
	g := &gate{open: c.open(), names: c.Daemons.Names}
	a := &api{audit: &audit{path: c.Audit, log: log}, registry: newRegistry(version), log: log}
	a.counters = newCounters(a.registry)
	var err error
	if c.Daemons.TokensFile != "" {
		if g.tokens, err = openTokens(log, c.Daemons.TokensFile, false); err != nil {
			return nil, fmt.Errorf("daemons.tokens_file: %w", err)
		}
	}
	if c.API.TokensFile != "" {
		if a.admins, err = openTokens(log, c.API.TokensFile, true); err != nil {
			return nil, fmt.Errorf("api.tokens_file: %w", err)
		}
	}
	a.daemons = g.tokens
	if g.open {
		log.Warn("whoever reaches the port is the daemon that it says it is", "listen", c.Listen)
	}
	if err := s.decide(c, g, a); err != nil {
		return nil, err
	}
	return s, s.listen(c, g, a)
}

// decide sets up what decides, and who is told.
func (s *Server) decide(c *Config, g *gate, a *api) error {
	options := folder.Options{
		ProxyNeeds: "a control plane that decides queries, which netfence-control does not (see docs/control-plane.md, Options.DNS)",
		Dir:        c.Policies.Dir, Default: c.DefaultPolicy, MaxCommandBytes: maxCommandBytes, Log: s.log,
		Changed: func(changes []folder.Change) {
			s.plane.Refresh(controlplane.Selector{})
			a.seen(changes)
		},
	}
	files := folder.Directory(c.Policies.Dir)
	if s.store = (&dir{files}); c.Policies.Dir == "" {
		e, err := openEtcd(c, s.log)
		if err != nil {
			return err
		}
		s.store, files = e, e
	}
	options.Files = files
	var err error
	if s.source, err = folder.NewSource(options); err != nil {
		return err
	}
	hostname, _ := os.Hostname() // a name for logs; none is fine
	s.plane, err = controlplane.New(controlplane.Options{
		Policy: s.source.Policy,
		Authorize: func(ctx context.Context, p controlplane.Peer) error {
			err := g.authorize(ctx, p)
			if err != nil {
				a.counters.denied.Inc()
			}
			return err
		},
		OnConnect:    func(controlplane.Daemon) { a.counters.connects.Inc() },
		OnDisconnect: func(controlplane.Daemon) { a.counters.disconnects.Inc() },
		OnAttach:     func(controlplane.Attachment) { a.counters.attached.Inc() },
		OnDetach:     func(controlplane.Attachment, controlplane.Detached) { a.counters.detached.Inc() },
		OnRefused:    a.refused,
		Heartbeat:    c.Beat, ServerID: hostname, Log: s.log,
	})
	if err != nil {
		return err
	}
	a.source, a.store, a.plane = s.source, s.store, s.plane
	a.registry.MustRegister(&gauges{plane: s.plane, source: s.source, ready: a.ready})
	return nil
}

// seen records what this server took over, whoever changed it.
func (a *api) seen(changes []folder.Change) {
	for _, c := range changes {
		attrs := []slog.Attr{
			slog.String("policy", c.Name), slog.String("old_revision", c.Old), slog.String("new_revision", c.New),
			slog.String("outcome", "taken over"),
		}
		if c.Err != nil {
			attrs[len(attrs)-1] = slog.String("outcome", "broken")
			attrs = append(attrs, slog.String("reason", c.Err.Error()))
		}
		a.audit.note("seen", attrs...)
	}
}

// listen opens the ports, both or none.
func (s *Server) listen(c *Config, g *gate, a *api) error {
	options := controlplane.ServerOptions()
	if c.TLS.on() {
		config, lists, err := c.TLS.server(s.log, g.tokens == nil, "h2")
		if err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		g.lists = lists
		options = append(options, grpc.Creds(&handshakes{credentials.NewTLS(config), s.log, a.counters}))
	}
	s.grpc = grpc.NewServer(append(options, grpc.WaitForHandlers(true))...)
	s.plane.Register(s.grpc)
	s.http = &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // what clients do wrong
	}
	if c.API.TLS.on() {
		var err error
		if s.http.TLSConfig, a.lists, err = c.API.TLS.server(s.log, true, "h2", "http/1.1"); err != nil {
			return fmt.Errorf("api.tls: %w", err)
		}
	}
	var err error
	if s.daemons, err = listen("listen", c.Listen); err != nil {
		return err
	}
	if s.admins, err = listen("api.listen", c.API.Listen); err != nil {
		_ = s.daemons.Close() // nobody has used it
		return err
	}
	return nil
}

func listen(key, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s %s: somebody else listens there (choose another port, or stop the other)", key, address)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %v", key, address, err)
	}
	return l, nil
}

// Address is where daemons connect.
func (s *Server) Address() string { return s.daemons.Addr().String() }

// APIAddress is where administrators connect.
func (s *Server) APIAddress() string { return s.admins.Addr().String() }

// Serve serves until ctx is done, or a port fails, and closes everything.
func (s *Server) Serve(ctx context.Context) error {
	following, unfollow := context.WithCancel(context.WithoutCancel(ctx))
	defer unfollow()
	var running sync.WaitGroup
	running.Go(func() { s.store.run(following, s.source) })
	running.Go(func() { s.reauthorize(following) })
	failed := make(chan error, 2)
	running.Go(func() { failed <- s.grpc.Serve(s.daemons) })
	running.Go(func() { failed <- s.serveAPI() })
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	s.stop()
	unfollow()
	running.Wait()
	return err
}

// reauthorize ends streams whose certificate or token was taken back while they stood.
func (s *Server) reauthorize(ctx context.Context) {
	again := time.NewTicker(reauthorizeEvery)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			s.plane.Reauthorize(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) serveAPI() error {
	var err error
	if s.http.TLSConfig != nil {
		err = s.http.ServeTLS(s.admins, "", "")
	} else {
		err = s.http.Serve(s.admins)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// stop sends the daemons to another server. Those that do not answer in time are broken off: what is in force there stays.
func (s *Server) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close() // of a client that does not read its answer
	}
	_ = s.daemons.Close() // whoever comes now is better served by another
	draining, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := s.plane.Shutdown(draining); err != nil {
		s.log.Warn("daemons were broken off", "err", err)
	}
	s.grpc.Stop()
}
