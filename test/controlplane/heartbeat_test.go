// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// publishedHeartbeat is the interval where nobody asks for another.
const publishedHeartbeat = 30 * time.Second

// Heartbeats carry the counters: every 30 s, or as often as the Welcome of a peer that knows our additions asks for.
func TestHeartbeat(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		builtFrom, ack string
		interval       time.Duration
	}{
		"published": {builtFromPublished, `{"sync_ack": {}}`, publishedHeartbeat},
		"ours":      {builtFromOurs, `{"sync_ack": {"welcome": {"heartbeat_interval": "1s"}}}`, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, workload := newWorld(t)
			d, p := start(t, w.Host, test.builtFrom)
			// The first SyncAck of a stream counts, and start has sent a plain one.
			d.Stop(t)
			p.Ended()
			d.Start(t)
			p.Sync()
			p.Send("%s", test.ack)
			started := time.Now()

			testenv.ServeDNS(t, w.Outside, namesZone, upstream)
			id := attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}],
				"dns": {"mode": "DNS_MODE_ALLOWLIST", "upstream_servers": ["`+upstream+`"], "allow_domains": [{"domain": "other.example"}]}}`,
				"--interface", w.Link)
			for _, name := range []string{"other.example", "one.example", "two.example"} {
				testenv.MustResolve(t, w.Workload, nil, testenv.Lookup{By: testenv.Dig, Server: testenv.ForeignResolver4, Name: name})
			}
			passes(t, workload, "198.51.100.1")
			blocked(t, workload, "203.0.113.1")
			for {
				e := p.next(2 * publishedHeartbeat)
				if e.Heartbeat == nil {
					t.Fatalf("got %s, want a heartbeat", e.Text)
				}
				// One that was on its way before may say less.
				if s := e.Heartbeat.Stats; len(s) == 1 && s[0].ID == id && s[0].PacketsAllowed > 0 && s[0].PacketsBlocked > 0 &&
					s[0].DNSQueriesAllowed == 1 && s[0].DNSQueriesBlocked == 2 {
					break
				}
			}
			if took := time.Since(started); took > test.interval+publishedHeartbeat/2 {
				t.Errorf("heartbeat after %s, want one every %s", took, test.interval)
			}
		})
	}
}
