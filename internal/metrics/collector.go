// SPDX-License-Identifier: Apache-2.0

// Package metrics shows what the daemon counts to Prometheus. It counts nothing itself: everything is read when somebody
// scrapes.
package metrics

import (
	"runtime"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netfence/netfence/internal/datapath"
)

// Sample is all that is shown, at one time.
type Sample struct {
	Attachments []Attachment
	// Counters are by id, also of attachments that are only in the kernel: one that ends leaves the others first.
	Counters map[string]Counters
	// Ended sums up the attachments that are gone.
	Ended Counters
	// Reasons are all for which a packet can be dropped.
	Reasons []string
	// Flows and Learned are held for all attachments.
	Flows, Learned uint64

	Events     map[string]uint64 // by kind
	EventsLost uint64

	// Lookups are those in the cache of DNS answers, by result.
	Lookups            map[string]uint64
	Cached, CacheBytes uint64

	ControlPlane  string   // the state of the connection
	ControlPlanes []string // all states there are

	ReconcileFailures, PoliciesRefused uint64
}

// Attachment is one attachment.
type Attachment struct {
	ID, Target string
	Type, Mode string
	Audit      bool // of the policy in force
	Failing    bool // the kernel is not as desired
}

// Counters are of the kernel and of the DNS server.
type Counters struct {
	datapath.Counters
	Queries Queries
}

// Queries are DNS queries. WouldDeny are among the allowed.
type Queries struct{ Allowed, Blocked, WouldDeny uint64 }

func (c *Counters) add(other Counters) {
	c.Add(other.Counters)
	c.Queries.Allowed += other.Queries.Allowed
	c.Queries.Blocked += other.Queries.Blocked
	c.Queries.WouldDeny += other.Queries.WouldDeny
}

// collector reads a Sample at each scrape.
type collector struct {
	read          func() (Sample, error)
	version       string
	perAttachment bool

	build, attachments, failing, flows, learned, events, lost, controlPlane, failures, refused *prometheus.Desc
	lookups, cached, cacheBytes                                                                *prometheus.Desc
	packets, bytes, drops, wouldDeny, unnoted, queries, queriesWouldDeny                       *prometheus.Desc
}

func newCollector(version string, perAttachment bool, read func() (Sample, error)) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("netfence_"+name, help, labels, nil)
	}
	counter := func(name, help string, labels ...string) *prometheus.Desc {
		if perAttachment {
			labels = append(labels, "attachment", "target")
		}
		return desc(name, help, labels...)
	}
	return &collector{
		read: read, version: version, perAttachment: perAttachment,

		build:        desc("build_info", "The daemon that runs; always 1.", "version", "go_version"),
		attachments:  desc("attachments", "Attachments, by the policy in force.", "type", "mode", "audit"),
		failing:      desc("attachments_failing", "Attachments for which the kernel is not as desired."),
		flows:        desc("flows", "Reply flows and flows on learned addresses in the kernel."),
		learned:      desc("learned_addresses", "Addresses that answers to DNS queries have opened, those of several attachments several times."),
		events:       desc("events_total", "Events for whoever watches.", "kind"),
		lost:         desc("events_lost_total", "Events that nobody was told of, because they were more than the rate of their attachment or than there was room for."),
		lookups:      desc("dns_cache_lookups_total", "Lookups in the cache of DNS answers, by result.", "result"),
		cached:       desc("dns_cache_answers", "DNS answers that are kept."),
		cacheBytes:   desc("dns_cache_bytes", "What they take."),
		controlPlane: desc("control_plane_state", "1 for the state of the connection to the control plane, 0 for the others.", "state"),
		failures:     desc("reconcile_failures_total", "Attempts to have the kernel as desired that failed and are made again."),
		refused:      desc("policies_refused_total", "Policies that the kernel had no room for."),

		packets:   counter("packets_total", "Packets of workloads, by verdict.", "verdict"),
		bytes:     counter("bytes_total", "Bytes of those packets.", "verdict"),
		drops:     counter("dropped_packets_total", "Dropped packets, by reason.", "reason"),
		wouldDeny: counter("would_deny_packets_total", "Packets that passed because the policy was in audit, by the reason for which they would have been dropped.", "reason"),
		unnoted:   counter("unnoted_flow_packets_total", "Packets to learned addresses that passed while their attachment had as many flows as it may."),
		queries:   counter("dns_queries_total", "DNS queries of workloads, by verdict.", "verdict"),
		queriesWouldDeny: counter("dns_queries_would_deny_total",
			"DNS queries that were answered because the policy was in audit; they count as allowed, too."),
	}
}

func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.build, c.attachments, c.failing, c.flows, c.learned, c.events, c.lost, c.controlPlane, c.failures, c.refused,
		c.lookups, c.cached, c.cacheBytes,
		c.packets, c.bytes, c.drops, c.wouldDeny, c.unnoted, c.queries, c.queriesWouldDeny,
	} {
		to <- d
	}
}

func (c *collector) Collect(to chan<- prometheus.Metric) {
	s, err := c.read()
	if err != nil {
		to <- prometheus.NewInvalidMetric(c.packets, err)
		return
	}
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v uint64, labels ...string) {
		for i := range labels { // what a target is called is its owner's choice
			labels[i] = strings.ToValidUTF8(labels[i], "\uFFFD")
		}
		to <- prometheus.MustNewConstMetric(d, kind, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v uint64, labels ...string) { put(d, prometheus.GaugeValue, v, labels...) }
	counter := func(d *prometheus.Desc, v uint64, labels ...string) { put(d, prometheus.CounterValue, v, labels...) }

	gauge(c.build, 1, c.version, runtime.Version())
	type kind struct {
		kind, mode string
		audit      bool
	}
	kinds, failing := map[kind]uint64{}, uint64(0)
	for _, a := range s.Attachments {
		kinds[kind{a.Type, a.Mode, a.Audit}]++
		if a.Failing {
			failing++
		}
	}
	for k, n := range kinds {
		gauge(c.attachments, n, k.kind, k.mode, yesOrNo(k.audit))
	}
	gauge(c.failing, failing)
	gauge(c.flows, s.Flows)
	gauge(c.learned, s.Learned)
	for kind, n := range s.Events {
		counter(c.events, n, kind)
	}
	counter(c.lost, s.EventsLost)
	for result, n := range s.Lookups {
		counter(c.lookups, n, result)
	}
	gauge(c.cached, s.Cached)
	gauge(c.cacheBytes, s.CacheBytes)
	for _, state := range s.ControlPlanes {
		on := uint64(0)
		if state == s.ControlPlane {
			on = 1
		}
		gauge(c.controlPlane, on, state)
	}
	counter(c.failures, s.ReconcileFailures)
	counter(c.refused, s.PoliciesRefused)

	show := func(counts Counters, reasons []string, whose ...string) {
		counter := func(d *prometheus.Desc, v uint64, labels ...string) { counter(d, v, append(labels, whose...)...) }
		counter(c.packets, counts.PacketsAllowed, "allowed")
		counter(c.packets, counts.PacketsDropped, "dropped")
		counter(c.bytes, counts.BytesAllowed, "allowed")
		counter(c.bytes, counts.BytesDropped, "dropped")
		byReason(counts.Drops, reasons, func(reason string, n uint64) { counter(c.drops, n, reason) })
		byReason(counts.WouldDeny, reasons, func(reason string, n uint64) { counter(c.wouldDeny, n, reason) })
		counter(c.unnoted, counts.FlowsUnnoted)
		counter(c.queries, counts.Queries.Allowed, "allowed")
		counter(c.queries, counts.Queries.Blocked, "blocked")
		counter(c.queriesWouldDeny, counts.Queries.WouldDeny)
	}
	if c.perAttachment {
		show(s.Ended, s.Reasons, "", "")
		targets := make(map[string]string, len(s.Attachments))
		for _, a := range s.Attachments {
			targets[a.ID] = a.Target
		}
		for id, counts := range s.Counters {
			show(counts, nil, id, targets[id])
		}
		return
	}
	var sum Counters
	sum.add(s.Ended)
	for _, counts := range s.Counters {
		sum.add(counts)
	}
	show(sum, s.Reasons)
}

// byReason shows the reasons named, at zero too, so that a rate sees the first packet; and whatever has been counted.
func byReason(counts map[string]uint64, named []string, show func(reason string, n uint64)) {
	for _, reason := range named {
		if counts[reason] == 0 {
			show(reason, 0)
		}
	}
	for reason, n := range counts {
		if n > 0 {
			show(reason, n)
		}
	}
}

func yesOrNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
