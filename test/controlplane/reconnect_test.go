// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/test/harness"
)

// Without its control plane the daemon goes on with what it has; the next stream begins with all of it.
func TestReconnect(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished, "NETFENCE_METADATA=rack=r7")
	id := attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}]}`,
		"--interface", w.Link, "--metadata", "tenant=acme")
	other := attachCgroup(t, d, p)

	p.Stop()
	passes(t, workload, "198.51.100.1")
	blocked(t, workload, "203.0.113.1")
	p.Start()

	request := p.Connect()
	if request.DaemonID != d.Status(t).DaemonID || request.Hostname == "" || request.Metadata["rack"] != "r7" {
		t.Errorf("SyncRequest %+v", request)
	}
	if got := ids(request); !slices.Equal(got, []string{id, other}) {
		t.Fatalf("SyncRequest has %v, want %s and %s", got, id, other)
	}
	if a := request.Attachments[0]; a.Target != w.Link || a.Type != "ATTACHMENT_TYPE_TC" || a.Mode != allowlist ||
		a.DNSMode != "DNS_MODE_DISABLED" || a.Metadata["tenant"] != "acme" {
		t.Errorf("SyncRequest has %+v", a)
	}

	p.Send(`{"id": %q, "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "203.0.113.0/24"}]}}`, id)
	await(t, d, id, "update after the reconnect", func(s harness.Shown) bool {
		return words(s.Policy) == "allowlist, allow 203.0.113.0/24, dns disabled"
	})
	passes(t, workload, "203.0.113.1")
	blocked(t, workload, "198.51.100.1")
}

// A control plane that has a newer stream of a daemon ends the older one with ABORTED. The daemon comes back like after
// any other end, and what counts is what the newest stream says.
func TestNewestStream(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromPublished)
	id := attachCgroup(t, d, p)
	for _, code := range []codes.Code{codes.Aborted, codes.Unavailable, codes.Internal} {
		old := p.stream
		p.Send(`{"id": %q, "set_mode": {"mode": "POLICY_MODE_DENYLIST"}}`, id)
		p.End(code)
		request := p.Connect()
		if got := ids(request); p.stream != old+1 || !slices.Equal(got, []string{id}) {
			t.Fatalf("after %s: stream %d has %v, want %s", code, p.stream, got, id)
		}
		// Commands that arrived before the end are applied: the control plane may believe that they were.
		if got := request.Attachments[0].Mode; got != "POLICY_MODE_DENYLIST" {
			t.Errorf("after %s: mode %s, want the one sent last", code, got)
		}
		p.order(order{Stream: old, Command: []byte(`{"id": "` + id + `", "set_mode": {"mode": "POLICY_MODE_DISABLED"}}`)})
		p.Send(`{"id": %q, "set_mode": {"mode": "POLICY_MODE_ALLOWLIST"}}`, id)
		await(t, d, id, "command on the newest stream", func(s harness.Shown) bool { return s.Attachment.Mode == "allowlist" })
	}
}

func ids(request *syncRequest) []string {
	var list []string
	for _, a := range request.Attachments {
		list = append(list, a.ID)
	}
	return list
}
