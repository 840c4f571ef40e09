// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/policy"
)

// Options are what New needs. Zero values stand for the defaults.
type Options struct {
	Kernel Kernel // required
	Remote Remote // nil: every query in proxy mode is SERVFAIL

	// Upstreams returns the servers to ask where a policy names none. It is
	// called for every such query. Its error is told to the client. See Upstreams.
	Upstreams func() ([]netip.AddrPort, error) // required
	// Forward are the daemon's zones with servers of their own; those of a
	// policy go first.
	Forward []policy.ZoneForward
	// Control is called with every socket that upstreams are asked on, before
	// it connects, so that the daemon's own packets can be exempted.
	Control func(network, address string, c syscall.RawConn) error
	// Settled is closed once Kernel knows what is in force for every attachment that
	// there is. Until then a query of one that it does not know waits, as far as its
	// time reaches, and so do new connections. Nil: it knows.
	Settled <-chan struct{}
	// Avoid are addresses that are never asked, because the answer would come
	// from this server. Default: datapath.DNSRanges.
	Avoid []netip.Prefix

	MinTTL, MaxTTL time.Duration     // of what is learned; 30 s and 1 h
	RefuseWith     policy.RefuseCode // for policies that do not say
	// AllowPrivateAnswers turns the private-answer guard off.
	AllowPrivateAnswers bool
	// HostAddrs returns the host's own addresses, for the guard. It is called
	// at most once a second. While it fails or takes its time, those of before count, and
	// if there are none, every address is the host's.
	HostAddrs func() ([]netip.Addr, error)

	// CacheBytes is how much the answers of servers may take that are kept; 0: none are.
	CacheBytes int
	// ServeStale is for how long after its end an answer is given when there is no
	// other; 0: never.
	ServeStale time.Duration

	MaxQueries int // in flight for one attachment; 256
	MaxTotal   int // in flight for all, and connections of all; 8192, or a quarter of the files that may be open
	MaxConns   int // TCP connections of one attachment; 32
	// Timeout is what one query may take in all. The default, 4.5 s, is below
	// the 5 s after which glibc asks again.
	Timeout time.Duration
	// TryTimeout is how long one server is waited for; 1 s.
	TryTimeout time.Duration
	// IdleTimeout ends a TCP connection on which nothing is asked; 10 s.
	IdleTimeout time.Duration

	// Events receives a DNSDecision for each query, and incidents. It must not block.
	Events func(events.Event)
	Log    *slog.Logger
}

func (o *Options) complete() error {
	if o.Kernel == nil || o.Upstreams == nil {
		return errors.New("dns server: no kernel or no upstreams given")
	}
	if o.Avoid == nil {
		o.Avoid = datapath.DNSRanges()
	}
	orDefault(&o.MinTTL, 30*time.Second)
	orDefault(&o.MaxTTL, time.Hour)
	if o.MinTTL > o.MaxTTL {
		return fmt.Errorf("dns server: the least TTL, %v, is more than the greatest, %v", o.MinTTL, o.MaxTTL)
	}
	orDefault(&o.MaxQueries, 256)
	orDefault(&o.MaxTotal, min(8192, openFiles()/4))
	orDefault(&o.MaxConns, 32)
	orDefault(&o.Timeout, 4500*time.Millisecond)
	orDefault(&o.TryTimeout, time.Second)
	orDefault(&o.IdleTimeout, 10*time.Second)
	if o.HostAddrs == nil {
		o.HostAddrs = interfaceAddrs
	}
	if o.Events == nil {
		o.Events = func(events.Event) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// openFiles is how many this process may have.
func openFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 256 {
		return 256
	}
	return int(min(limit.Cur, 1<<30))
}

// orDefault replaces what is not positive.
func orDefault[T int | time.Duration](v *T, standard T) {
	if *v <= 0 {
		*v = standard
	}
}
