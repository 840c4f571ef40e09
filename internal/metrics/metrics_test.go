// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"

	"github.com/netfence/netfence/internal/datapath"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sample() (Sample, error) {
	return Sample{
		Attachments: []Attachment{
			{ID: "1", Target: "veth0", Type: "interface", Mode: "allowlist"},
			{ID: "2", Target: "/sys/fs/cgroup/\xff", Type: "cgroup", Mode: "denylist", Audit: true, Failing: true},
		},
		Counters: map[string]Counters{
			"1": {
				Counters: datapath.Counters{
					PacketsAllowed: 10, BytesAllowed: 1000, PacketsDropped: 3, BytesDropped: 300,
					Drops: map[string]uint64{"no-rule": 2, "deny-rule": 1}, FlowsUnnoted: 4,
				},
				Queries: Queries{Allowed: 5, Blocked: 6},
			},
			"2": {
				Counters: datapath.Counters{PacketsAllowed: 20, PacketsWouldDeny: 7, WouldDeny: map[string]uint64{"no-rule": 7}},
				Queries:  Queries{Allowed: 8, WouldDeny: 2},
			},
		},
		Ended:   Counters{Counters: datapath.Counters{PacketsAllowed: 100, PacketsDropped: 1, Drops: map[string]uint64{"no-rule": 1}}},
		Reasons: []string{"no-rule", "deny-rule", "guard"},
		Flows:   11, Learned: 12,
		Events: map[string]uint64{"denied_flow": 13, "dns_decision": 14, "incident": 0}, EventsLost: 15,
		Lookups: map[string]uint64{"hit": 18, "miss": 19}, Cached: 20, CacheBytes: 21,
		ControlPlane: "connected", ControlPlanes: []string{"connected", "disconnected"},
		ReconcileFailures: 16, PoliciesRefused: 17,
	}, nil
}

// serve returns the address of a server that ends with the test.
func serve(t *testing.T, o Options) string {
	t.Helper()
	l, err := Listen(t.Context(), "127.0.0.1:0", func(syscall.RawConn) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	o.Version, o.Log = "v1.2.3", slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, o) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return Address(l).String()
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// scrape returns the families of Netfence's.
func scrape(t *testing.T, address string) map[string]*dto.MetricFamily {
	t.Helper()
	status, body := get(t, "http://"+address+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("%d: %s", status, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if families["go_goroutines"] == nil {
		t.Error("nothing of the process itself")
	}
	maps.DeleteFunc(families, func(name string, _ *dto.MetricFamily) bool { return !strings.HasPrefix(name, "netfence_") })
	return families
}

// values are the samples of a family by the values of their labels, which come in the order of the labels' names.
func values(f *dto.MetricFamily) map[string]float64 {
	all := map[string]float64{}
	for _, m := range f.GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, l.GetValue())
		}
		all[strings.Join(labels, " ")] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return all
}

func TestScrape(t *testing.T) {
	families := scrape(t, serve(t, Options{Read: sample}))
	for name, want := range map[string]map[string]float64{
		"netfence_attachments":                  {"no allowlist interface": 1, "yes denylist cgroup": 1},
		"netfence_attachments_failing":          {"": 1},
		"netfence_flows":                        {"": 11},
		"netfence_learned_addresses":            {"": 12},
		"netfence_events_total":                 {"denied_flow": 13, "dns_decision": 14, "incident": 0},
		"netfence_events_lost_total":            {"": 15},
		"netfence_dns_cache_lookups_total":      {"hit": 18, "miss": 19},
		"netfence_dns_cache_answers":            {"": 20},
		"netfence_dns_cache_bytes":              {"": 21},
		"netfence_control_plane_state":          {"connected": 1, "disconnected": 0},
		"netfence_reconcile_failures_total":     {"": 16},
		"netfence_policies_refused_total":       {"": 17},
		"netfence_packets_total":                {"allowed": 130, "dropped": 4},
		"netfence_bytes_total":                  {"allowed": 1000, "dropped": 300},
		"netfence_dropped_packets_total":        {"no-rule": 3, "deny-rule": 1, "guard": 0},
		"netfence_would_deny_packets_total":     {"no-rule": 7, "deny-rule": 0, "guard": 0},
		"netfence_unnoted_flow_packets_total":   {"": 4},
		"netfence_dns_queries_total":            {"allowed": 13, "blocked": 6},
		"netfence_dns_queries_would_deny_total": {"": 2},
	} {
		if got := values(families[name]); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		delete(families, name)
	}
	if build := values(families["netfence_build_info"]); len(build) != 1 || slices.Collect(maps.Values(build))[0] != 1 {
		t.Errorf("build: %v", build)
	}
	if delete(families, "netfence_build_info"); len(families) > 0 {
		t.Errorf("not looked at: %v", slices.Collect(maps.Keys(families)))
	}
}

func TestScrapePerAttachment(t *testing.T) {
	families := scrape(t, serve(t, Options{Read: sample, PerAttachment: true}))
	for name, want := range map[string]map[string]float64{
		"netfence_packets_total": {
			"1 veth0 allowed": 10, "1 veth0 dropped": 3, "2 /sys/fs/cgroup/\uFFFD allowed": 20, "2 /sys/fs/cgroup/\uFFFD dropped": 0,
			"  allowed": 100, "  dropped": 1,
		},
		"netfence_dropped_packets_total":    {"1 no-rule veth0": 2, "1 deny-rule veth0": 1, " no-rule ": 1, " deny-rule ": 0, " guard ": 0},
		"netfence_would_deny_packets_total": {"2 no-rule /sys/fs/cgroup/\uFFFD": 7, " no-rule ": 0, " deny-rule ": 0, " guard ": 0},
		"netfence_attachments":              {"no allowlist interface": 1, "yes denylist cgroup": 1},
	} {
		if got := values(families[name]); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// TestDocumented holds that every metric is in docs/operations.md.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range scrape(t, serve(t, Options{Read: sample})) {
		if !strings.Contains(string(text), "`"+name) {
			t.Errorf("%s is not in docs/operations.md", name)
		}
	}
}

func TestFailedReadIsNoEmptyScrape(t *testing.T) {
	address := serve(t, Options{Read: func() (Sample, error) { return Sample{}, errors.New("no such map") }})
	if status, body := get(t, "http://"+address+"/metrics"); status != http.StatusInternalServerError || !strings.Contains(body, "no such map") {
		t.Errorf("%d: %s", status, body)
	}
}

func TestOtherRequests(t *testing.T) {
	address := serve(t, Options{Read: sample})
	if status, body := get(t, "http://"+address+"/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz: %d %q", status, body)
	}
	if status, _ := get(t, "http://"+address+"/"); status != http.StatusNotFound {
		t.Errorf("/: %d", status)
	}
	r, err := http.Post("http://"+address+"/metrics", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", r.StatusCode)
	}
}

func TestListenSaysWhy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	at := taken.Addr().String()
	for address, want := range map[string]string{
		at:               "metrics.listen " + at + ": somebody else listens there (choose another port, or off)",
		"192.0.2.1:9464": "metrics.listen 192.0.2.1:9464: listen tcp 192.0.2.1:9464: bind: cannot assign requested address",
	} {
		l, err := Listen(t.Context(), address, func(syscall.RawConn) error { return nil })
		if err == nil {
			l.Close()
		}
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", address, err, want)
		}
	}
}
