// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// With a timeout of 0 nobody waits: the attachment is there, pending and closed, until it is acknowledged.
func TestAckTimeoutZero(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished, "NETFENCE_CONTROL_PLANE_SUBSCRIBE_ACK_TIMEOUT=0")
	id := d.Attach(t, "--interface", w.Link)
	if got := p.Subscribed(); got.ID != id {
		t.Errorf("Subscribed %+v, want %s", got, id)
	}
	if shown := d.Show(t, id); !shown.Pending || shown.Attachment.Mode != "block-all" {
		t.Errorf("policy show: %+v", shown)
	}
	blocked(t, workload, "198.51.100.1")

	// An increment is not a first policy: what it adds to is not known yet.
	p.Send(`{"id": %q, "allow_cidr": {"cidr": "198.51.100.0/24"}}`, id)
	await(t, d, id, "refusal", func(s harness.Shown) bool { return strings.Contains(s.LastError, "pending") })

	// Pending ones are left out of SyncRequest, and announced again after it.
	p.End(codes.Unavailable)
	if request := p.Connect(); len(request.Attachments) != 0 {
		t.Errorf("SyncRequest has %+v", request.Attachments)
	}
	if got := p.Subscribed(); got.ID != id {
		t.Errorf("Subscribed %+v, want %s", got, id)
	}
	blocked(t, workload, "198.51.100.1")

	p.Send(`{"id": %q, "subscribed_ack": {"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}]}}`, id)
	await(t, d, id, "acknowledgement", func(s harness.Shown) bool { return !s.Pending && s.Attachment.Mode == "allowlist" })
	passes(t, workload, "198.51.100.1")
	blocked(t, workload, "203.0.113.1")
}

// Nobody to ask: the attach fails at once and leaves nothing.
func TestUnreachableFails(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromPublished, longAck)
	p.Stop()
	testenv.Eventually(t, "loss of the control plane", func() bool { return d.Status(t).ControlPlaneState != "connected" })
	before := traces(t, d)
	r := d.Run(t, "attach", "--cgroup", testenv.NewCgroup(t).Path)
	if r.Code != 1 || !strings.Contains(r.Stderr, p.Address+": not connected") {
		t.Errorf("attach: %+v", r)
	}
	if after := traces(t, d); len(after) != len(before) {
		t.Errorf("left behind: %q, before there was %q", after, before)
	}
	p.Start()
	if request := p.Connect(); len(request.Attachments) != 0 {
		t.Errorf("SyncRequest has %+v", request.Attachments)
	}
	// For all that the daemon knows, it may have been announced on the stream that broke.
	if got := p.Unsubscribed(); got.Reason != reasonError {
		t.Errorf("got %+v, want ERROR", got)
	}
	attachCgroup(t, d, p)
}

// With attach_when_unreachable: pending, the attachment waits, closed, for a control plane to come.
func TestUnreachablePending(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished, "NETFENCE_CONTROL_PLANE_ATTACH_WHEN_UNREACHABLE=pending")
	p.Stop()
	testenv.Eventually(t, "loss of the control plane", func() bool { return d.Status(t).ControlPlaneState != "connected" })
	id := d.Attach(t, "--interface", w.Link)
	if shown := d.Show(t, id); !shown.Pending || shown.Attachment.Mode != "block-all" {
		t.Errorf("policy show: %+v", shown)
	}
	blocked(t, workload, "198.51.100.1")

	p.Start()
	if request := p.Connect(); len(request.Attachments) != 0 {
		t.Errorf("SyncRequest has %+v", request.Attachments)
	}
	if got := p.Subscribed(); got.ID != id {
		t.Errorf("Subscribed %+v, want %s", got, id)
	}
	p.Send(`{"id": %q, "subscribed_ack": {"mode": "POLICY_MODE_DENYLIST"}}`, id)
	await(t, d, id, "acknowledgement", func(s harness.Shown) bool { return !s.Pending && s.Attachment.Mode == "denylist" })
	passes(t, workload, "198.51.100.1")
}
