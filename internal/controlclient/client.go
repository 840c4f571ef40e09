// SPDX-License-Identifier: Apache-2.0

// Package controlclient is the daemon's side of ControlPlane.Connect: one stream to the control plane,
// over which it tells what is attached and applies what it is commanded.
//
// A command becomes desired state through state.Store and is answered when that is in force in the
// kernel, or refused whole. Nothing here changes a policy by itself: a lost, silent or senseless control
// plane leaves every attachment as it is, and a pending one closed. What must be told is derived from
// the store when a stream opens, so a broken stream loses nothing.
package controlclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

// Unreachable says what an attach does while there is no control plane to ask.
type Unreachable uint8

// Fail is the zero value: no attachment without a policy of its own.
const (
	UnreachableFail    Unreachable = iota // the attach fails at once
	UnreachablePending                    // the attach returns; the attachment stays block-all until acknowledged
	UnreachableCached                     // the attach takes the last policy of its key; without one it fails
)

// Stats is what a heartbeat tells of one attachment.
type Stats struct {
	PacketsAllowed, PacketsBlocked       uint64
	DNSQueriesAllowed, DNSQueriesBlocked uint64
}

// Options of a Client. Dial, Addresses, Store and DaemonID are required.
type Options struct {
	// Dial connects to one of Addresses, which are dialled in turn: the next one when a stream or a dial has failed.
	Dial       func(ctx context.Context, address string) (Conn, error) // one connection per stream
	Addresses  []string
	Store      *state.Store
	DaemonID   string            // stable across restarts
	InstanceID string            // of this run of the daemon
	Hostname   string            // shown to the control plane
	Metadata   map[string]string // of the daemon
	// Counters of an attachment; false when there are none (yet). Nil: heartbeats are empty.
	Counters func(id string) (Stats, bool)
	// DNSAddress of an attachment. Nil: none has one.
	DNSAddress func(id string) string
	// Ready is asked before an attach waits: an error refuses it. The policy folder answers here for
	// files that nothing could be decided without. Nil: always ready.
	Ready func() error

	AckTimeout      time.Duration // how long Subscribe waits; 0: not at all
	WhenUnreachable Unreachable
	// Cached gives the last policy of a key, for UnreachableCached; nil: none is known.
	Cached          func(key string) (*policy.Policy, error)
	Heartbeat       time.Duration // until a Welcome says otherwise; 0: 30 s
	Backoff         Backoff       // zero: 500 ms to 30 s
	MaxCommandBytes int           // a larger command ends the stream; 0: 16 MiB
	Log             *slog.Logger  // nil: slog.Default
}

// Client keeps the stream. Its methods may be called from any goroutine.
type Client struct {
	opts Options
	log  *slog.Logger

	// mu guards what follows. Nothing blocks under it.
	mu      sync.Mutex
	link    link
	session *session // the open stream, nil between two
	waiters map[string]*waiter
	streams uint64 // opened so far; Hello.stream_seq
}

// New returns a client that does nothing until Run.
func New(opts Options) (*Client, error) {
	if opts.Dial == nil || len(opts.Addresses) == 0 || opts.Store == nil || opts.DaemonID == "" {
		return nil, errors.New("control client: Dial, Addresses, Store and DaemonID are required")
	}
	if opts.Heartbeat == 0 {
		opts.Heartbeat = 30 * time.Second
	}
	if opts.Backoff == (Backoff{}) {
		opts.Backoff = Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}
	}
	if opts.MaxCommandBytes == 0 {
		opts.MaxCommandBytes = 16 << 20
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	c := &Client{
		opts:    opts,
		log:     opts.Log.With("control_plane", strings.Join(opts.Addresses, ",")),
		waiters: make(map[string]*waiter),
		link:    link{state: Connecting, address: opts.Addresses[0], changed: make(chan struct{})},
	}
	// Also measures what the daemon itself adds to a SyncRequest: it must leave room for attachments.
	if size := c.syncRequestSize(); size > maxEventBytes/2 {
		return nil, fmt.Errorf("control client: metadata of the daemon takes %d bytes; at most %d", size, maxEventBytes/2)
	}
	return c, nil
}

// Run dials, and dials again, until ctx is done. It returns nil then: no failure of the control
// plane's is one of the daemon's.
func (c *Client) Run(ctx context.Context) error {
	defer c.setLink(Disconnected, nil)
	failures := 0
	for turn := 0; ; turn++ {
		address := c.opts.Addresses[turn%len(c.opts.Addresses)]
		c.dialling(address)
		opened := time.Now()
		err := c.stream(ctx, address)
		if ctx.Err() != nil {
			return nil
		}
		// A stream that falls as soon as it stands counts as a failure too: a command that this
		// daemon can never take would otherwise be sent again at once, for ever.
		if time.Since(opened) > c.opts.Backoff.Max {
			failures = 0
		}
		failures++
		wait := c.opts.Backoff.wait(failures)
		var away *goAwayError
		if errors.As(err, &away) {
			failures, wait = 0, away.wait
		}
		c.setLink(Disconnected, err)
		c.log.Warn("control plane stream ended; attachments keep what is in force", "address", address, "err", err, "retry_in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}
