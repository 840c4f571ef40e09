// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// The control plane and the workload are gone, and the daemon was killed. The next workload of the same key has what the
// last one had; one of another key is refused.
func TestAttachWithTheCachedPolicy(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished, "NETFENCE_CONTROL_PLANE_ATTACH_WHEN_UNREACHABLE=cached")
	id := attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}]}`, "--interface", w.Link, "--key", "job-7")
	p.Send(`{"id": %q, "allow_cidr": {"cidr": "203.0.113.0/24"}}`, id)
	await(t, d, id, "update", func(s harness.Shown) bool { return len(s.Policy.Allow) == 2 })
	<-time.After(3 * time.Second) // what is in force is kept within a second, and a half-loaded machine has time
	d.Must(t, "detach", "--id", id)
	p.Stop()
	d.Kill(t)
	d.Start(t)

	if r := <-d.Go(t, "attach", "--cgroup", testenv.NewCgroup(t).Path, "--key", "job-8"); r.Code != 1 || !strings.Contains(r.Stderr, "not connected") {
		t.Errorf("attach of a key that was never here: %+v", r)
	}
	again := d.Attach(t, "--interface", w.Link, "--key", "job-7")
	passes(t, workload, "198.51.100.1")
	passes(t, workload, "203.0.113.1")
	blocked(t, workload, "192.0.2.77")

	// The control plane is told of it as of any that was there before, and its word counts.
	p.Start()
	if request := p.Connect(); len(request.Attachments) != 1 || request.Attachments[0].ID != again {
		t.Errorf("SyncRequest has %+v", request.Attachments)
	}
	p.Send(`{"id": %q, "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST"}}`, again)
	await(t, d, again, "update", func(s harness.Shown) bool { return len(s.Policy.Allow) == 0 })
	blocked(t, workload, "198.51.100.1")
}
