// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"slices"
	"testing"

	"github.com/netfence/netfence/test/harness"
)

// A daemon that was killed, or stopped, comes back as the same one, with all that it had.
func TestRestart(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished)
	id := attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}],
		"deny_cidrs": [{"cidr": "198.51.100.66", "ttl": "3600s"}]}`, "--interface", w.Link)
	other := attachCgroup(t, d, p)
	daemonID, shown := d.Status(t).DaemonID, words(d.Show(t, id).Policy)

	for name, end := range map[string]func(){"kill": func() { d.Kill(t) }, "stop": func() { d.Stop(t) }} {
		end()
		p.Ended()
		passes(t, workload, "198.51.100.1")
		blocked(t, workload, "198.51.100.66")
		blocked(t, workload, "203.0.113.1")

		d.Start(t)
		request := p.Connect()
		if got := ids(request); request.DaemonID != daemonID || !slices.Equal(got, []string{id, other}) {
			t.Fatalf("%s: SyncRequest of %s has %v, want %s and %s of %s", name, request.DaemonID, got, id, other, daemonID)
		}
		await(t, d, id, "policy after "+name, func(s harness.Shown) bool { return words(s.Policy) == shown })
		passes(t, workload, "198.51.100.1")
		blocked(t, workload, "203.0.113.1")
	}
	// It is listened to as before.
	p.Send(`{"id": %q, "deny_cidr": {"cidr": "198.51.100.0/24"}}`, id)
	await(t, d, id, "command", func(s harness.Shown) bool { return len(s.Policy.Deny) == 2 })
	blocked(t, workload, "198.51.100.1")
}
