// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"maps"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// A workload is closed until the control plane has answered, and Attach returns when the answer is in force.
func TestSubscribe(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished)
	passes(t, workload, "198.51.100.1")

	attached := d.Go(t, "attach", "--interface", w.Link, "--metadata", "tenant=acme,env=prod")
	got := p.Subscribed()
	if got.Target != w.Link || got.Type != "ATTACHMENT_TYPE_TC" || got.Mode != blockAll ||
		!maps.Equal(got.Metadata, map[string]string{"tenant": "acme", "env": "prod"}) {
		t.Errorf("Subscribed %+v", got)
	}
	blocked(t, workload, "198.51.100.1")
	blocked(t, workload, "203.0.113.1")
	select {
	case r := <-attached:
		t.Fatalf("attach did not wait for the control plane: %+v", r)
	default:
	}

	p.Send(`{"id": %q, "subscribed_ack": {"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}]}}`, got.ID)
	if r := <-attached; r.Code != 0 || r.Stdout != got.ID+"\n" {
		t.Fatalf("attach: %+v, want the id %s", r, got.ID)
	}
	passes(t, workload, "198.51.100.1")
	blocked(t, workload, "203.0.113.1")
	if shown := d.Show(t, got.ID); shown.Pending || shown.Attachment.Mode != "allowlist" {
		t.Errorf("policy show: %+v", shown)
	}

	// A BulkUpdate for a pending attachment is as good.
	id := attachByUpdate(t, d, p)
	if shown := d.Show(t, id); shown.Attachment.Mode != "denylist" {
		t.Errorf("policy show: %+v", shown)
	}
}

func attachByUpdate(t *testing.T, d *harness.Daemon, p *plane) string {
	t.Helper()
	attached := d.Go(t, "attach", "--cgroup", testenv.NewCgroup(t).Path)
	id := p.Subscribed().ID
	p.Send(`{"id": %q, "bulk_update": {"mode": "POLICY_MODE_DENYLIST"}}`, id)
	if r := <-attached; r.Code != 0 {
		t.Fatalf("attach: %+v", r)
	}
	return id
}
