// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/metrics"
	"github.com/netfence/netfence/policy"
)

// openMetrics listens, out of the workloads' reach, or ends what a daemon has left that did.
func (d *daemon) openMetrics(ctx context.Context) (err error) {
	if d.config.Metrics.Listen == "" {
		return d.kernel.Protect(netip.AddrPort{})
	}
	if d.metrics, err = metrics.Listen(ctx, d.config.Metrics.Listen, datapath.Shut); err != nil {
		return err
	}
	return d.kernel.Protect(metrics.Address(d.metrics))
}

func (d *daemon) serveMetrics(ctx context.Context, version string) error {
	return metrics.Serve(ctx, d.metrics, metrics.Options{
		Version: version, PerAttachment: d.config.Metrics.PerAttachment, Read: d.sample, Log: d.log,
	})
}

// closeMetrics closes what never served. Another process may have the port from now on.
func (d *daemon) closeMetrics() error {
	if d.metrics == nil {
		return nil
	}
	err := d.metrics.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return errors.Join(err, d.kernel.Protect(netip.AddrPort{}))
}

// sample is what is scraped.
func (d *daemon) sample() (metrics.Sample, error) {
	census, err := d.kernel.Census()
	if err != nil {
		return metrics.Sample{}, err
	}
	queries, ended := d.dns.server.AllCounts()
	counts := d.hub.Counts()
	counters := make(map[string]metrics.Counters, len(census.Counters))
	for id, c := range census.Counters {
		counters[id] = metrics.Counters{Counters: c}
	}
	for id, q := range queries {
		c := counters[id]
		c.Queries = metrics.Queries(q)
		counters[id] = c
	}
	s := metrics.Sample{
		Counters: counters, Ended: metrics.Counters{Counters: census.Ended, Queries: metrics.Queries(ended)},
		Reasons: datapath.Reasons(),
		Flows:   census.Flows, Learned: census.Learned,
		Events:     map[string]uint64{"denied_flow": counts.Flows, "dns_decision": counts.Decisions, "incident": counts.Incidents},
		EventsLost: counts.Lost,

		ControlPlane:  stateNames[d.control.client.Status().State],
		ControlPlanes: slices.Sorted(maps.Values(stateNames)),
	}
	cache := d.dns.server.CacheStats()
	s.Lookups = map[string]uint64{"hit": cache.Hits, "stale": cache.Stale, "miss": cache.Misses, "joined": cache.Joined}
	s.Cached, s.CacheBytes = uint64(cache.Entries), uint64(cache.Bytes)
	s.ReconcileFailures, s.PoliciesRefused = d.reconciler.Failures()
	for _, a := range d.store.List() {
		_, st, err := d.store.Get(a.ID)
		if err != nil {
			continue // gone since the list was taken
		}
		inForce := st.InForce
		if inForce == nil {
			inForce = policy.BlockAll()
		}
		s.Attachments = append(s.Attachments, metrics.Attachment{
			ID: a.ID, Target: a.Target.Name, Type: a.Target.Type.String(), Mode: inForce.Mode.String(), Audit: inForce.Audit,
			Failing: st.LastError != nil,
		})
	}
	return s, nil
}
