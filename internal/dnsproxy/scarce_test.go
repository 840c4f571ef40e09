// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
)

// TestSocketWithoutFiles holds that who uses up what all share ends nothing.
func TestSocketWithoutFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bare(t, never(t))
		for _, serve := range []func(context.Context, *broken) error{
			func(ctx context.Context, b *broken) error { return w.Serve(ctx, b) },
			func(ctx context.Context, b *broken) error { return w.ServeTCP(ctx, b) },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			b := &broken{err: fmt.Errorf("accept: %w", unix.EMFILE)}
			if err := serve(ctx, b); err != nil || b.tries.Load() < 3600 || b.tries.Load() > 3700 {
				t.Errorf("%v after %d tries in an hour", err, b.tries.Load())
			}
			cancel()
		}
	})
}

// TestConnectionsOfNobody holds that indexes without an attachment, of which
// there are many, are no way to have all connections.
func TestConnectionsOfNobody(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{MaxConns: 1}, []*resolver{up}, allowlist("*"))
	w.kernel.mu.Lock()
	chains := w.kernel.chains
	w.kernel.chains = nil
	w.kernel.mu.Unlock()
	query := func(c *dns.Conn) error {
		if err := c.WriteMsg(questionFor("a.example", dns.TypeA)); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	stray := &dns.Conn{Conn: dial(t, "tcp", w.addr)}
	if err := query(stray); err != nil {
		t.Fatal(err)
	}
	w.kernel.mu.Lock()
	w.kernel.chains = chains
	w.kernel.mu.Unlock()
	if err := query(&dns.Conn{Conn: dial(t, "tcp", w.addr)}); err != nil {
		t.Errorf("somebody's place is taken by nobody's connection: %v", err)
	}
}

// TestQueryOfAnotherTime holds that a query is not decided for who gets the
// index while upstream is asked.
func TestQueryOfAnotherTime(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{}, []*resolver{up}, allowlist("*"))
	var tries atomic.Int32
	w.kernel.refusing(func() error {
		if tries.Add(1) > 1 {
			return nil
		}
		w.kernel.mu.Lock()
		defer w.kernel.mu.Unlock()
		chain := slices.Clone(w.kernel.chains[index])
		chain[0].ID = "somebody else"
		w.kernel.chains[index] = chain
		return datapath.ErrStale
	})
	b := packed(t, questionFor("a.example", dns.TypeA))
	if reply := w.handle(t.Context(), b, Peer{Index: index}, true); reply != nil || len(w.kernel.taught()) != 0 {
		t.Errorf("answered %x, taught %+v", reply, w.kernel.taught())
	}
}
