// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

const (
	maxConns   = 32
	maxScrapes = 4 // at once; each reads all counters
	// scrapeTimeout is what one scrape may take, its answer's way included. Prometheus gives up after 10 s.
	scrapeTimeout = 15 * time.Second
	stopTimeout   = time.Second
)

// Options are what a Server needs.
type Options struct {
	Version string
	// PerAttachment shows the counters of each attachment instead of their sums.
	PerAttachment bool
	// Read is called for each scrape.
	Read func() (Sample, error)
	Log  *slog.Logger
}

// Listen opens the port. filter is called with the socket before anything can come in.
func Listen(ctx context.Context, address string, filter func(syscall.RawConn) error) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error { return filter(conn) }}
	l, err := lc.Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("metrics.listen %s: somebody else listens there (choose another port, or off)", address)
	}
	if err != nil {
		return nil, fmt.Errorf("metrics.listen %s: %v", address, err)
	}
	return l, nil
}

// Address is where a listener of Listen's is; the zero address: at all that the host has.
func Address(l net.Listener) netip.AddrPort {
	at := l.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// Serve answers scrapes on l until ctx is done, and closes it.
func Serve(ctx context.Context, l net.Listener, o Options) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(o.Version, o.PerAttachment, o.Read),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	errorLog := slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: errorLog, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok") // who does not wait for it does not want to know
	})
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: scrapeTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug), // what clients do wrong
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(netutil.LimitListener(l, maxConns)) }()
	select {
	case err := <-failed:
		return fmt.Errorf("metrics: %v", err)
	case <-ctx.Done():
	}
	timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := server.Shutdown(timeout); err != nil {
		_ = server.Close() // a scraper that does not read its answer
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %v", err)
	}
	return nil
}
