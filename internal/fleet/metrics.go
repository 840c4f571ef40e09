// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/folder"
)

const namespace = "netfence_control"

// counters count what happens; how things stand is read when it is asked for, by gauges.
type counters struct {
	connects, disconnects, denied, attached, detached, refusals prometheus.Counter

	changes *prometheus.CounterVec // by what was asked for, and its outcome
}

func newCounters(registry *prometheus.Registry) *counters {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
		registry.MustRegister(c)
		return c
	}
	c := &counters{
		connects:    counter("connects_total", "Streams of daemons that began."),
		disconnects: counter("disconnects_total", "Streams of daemons that ended."),
		denied:      counter("denied_total", "Connections and streams of daemons that were refused for their credentials."),
		attached:    counter("attached_total", "Attachments that became known."),
		detached:    counter("detached_total", "Attachments that ended."),
		refusals:    counter("refusals_total", "Policies that a daemon did not put in force."),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "changes_total", Help: "Changes of policies that administrators asked for.",
		}, []string{"what", "outcome"}),
	}
	registry.MustRegister(c.changes)
	return c
}

// gauges are how things stand.
type gauges struct {
	plane  *controlplane.ControlPlane
	source *folder.Source
	ready  func() error
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var (
	descDaemons     = describe("daemons", "Daemons: connected, or gone for less than ten minutes.", "state")
	descAttachments = describe("attachments", "Attachments of the daemons.")
	descWaiting     = describe("attachments_waiting", "Attachments for which a decision is not yet in force, refused or given up.")
	descPolicies    = describe("policies", "Policy files.")
	descBroken      = describe("policies_broken", "Policy files that cannot be used as they are.")
	descReady       = describe("ready", "1 when what is decided is up to date, and can be about everything.")
)

func (g *gauges) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDaemons, descAttachments, descWaiting, descPolicies, descBroken, descReady} {
		out <- d
	}
}

func (g *gauges) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	var connected, gone, attachments, waiting int
	for _, d := range g.plane.Daemons() {
		if d.Connected {
			connected++
		} else {
			gone++
		}
		attachments += d.Attachments
		waiting += d.Waiting
	}
	gauge(descDaemons, connected, "connected")
	gauge(descDaemons, gone, "gone")
	gauge(descAttachments, attachments)
	gauge(descWaiting, waiting)
	entries, broken := g.source.Entries(), 0
	for _, e := range entries {
		if e.Err != nil {
			broken++
		}
	}
	gauge(descPolicies, len(entries))
	gauge(descBroken, broken)
	ready := 0
	if g.ready() == nil {
		ready = 1
	}
	gauge(descReady, ready)
}

// newRegistry holds what every program tells of itself.
func newRegistry(version string) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "1; the label is the version.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}
