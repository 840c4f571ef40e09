// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"context"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// Many daemons that lose the server and come back at once are decided about once each, and sent nothing: what they have
// is what is decided. What changes meanwhile is all that they are sent.
func TestReconnectStorm(t *testing.T) {
	hosts, each := 500, 3
	if os.Getenv("NETFENCE_SOAK") != "" {
		hosts = 2000
	}
	raiseFiles(t)
	var decide decider
	var asked atomic.Int64
	decide.next(false)
	s := newServer(t, "127.0.0.1:0", controlplane.Options{Policy: func(ctx context.Context, a controlplane.Attachment) (*policy.Policy, error) {
		asked.Add(1)
		return decide.policy(ctx, a)
	}})
	defer s.stop()
	f := newFleet(s.Address, hosts, each)
	settled := func() {
		t.Helper()
		if outcome := s.outcome(t, s.Refresh(controlplane.Selector{})); outcome.Applied != hosts*each {
			t.Fatalf("outcome %+v", outcome)
		}
	}
	connect := func() {
		t.Helper()
		if err := f.connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "all have settled", func() bool {
			return !slices.ContainsFunc(s.Daemons(), func(d controlplane.Daemon) bool { return !d.Connected || d.Waiting > 0 })
		})
	}
	connect()
	settled()
	sent, before := f.commands.Load(), asked.Load()
	for range 2 {
		f.disconnect()
		connect()
	}
	if n := f.commands.Load() - sent; n != 0 {
		t.Errorf("%d commands to daemons that had everything", n)
	}
	if n := asked.Load() - before; n != int64(2*hosts*each) {
		t.Errorf("asked %d times about %d attachments that came back twice", n, hosts*each)
	}
	f.disconnect()
	decide.next(false)
	connect()
	settled()
	// A policy of three attachments is put once, and used by nobody anew.
	if n := f.commands.Load() - sent; n < int64(hosts) || n > int64(2*hosts) {
		t.Errorf("%d commands for one change at %d daemons", n, hosts)
	}
	f.disconnect()
}
