// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// A policy that is sent once is that of all who use it, at the instant in which the result comes, and over a kill.
func TestNamedPolicy(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromOurs)
	put := func(revision, prefix, code string) {
		t.Helper()
		checkResult(t, p, "", `"put_policy": {"name": "agents", "revision": "`+revision+`", "policy":
			{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "`+prefix+`"}]}}`, code, revision, "")
	}
	put("a1", "198.51.100.0/24", "APPLIED")
	id := attach(t, d, p, `{"use_policy": {"name": "agents"}}`, "--interface", w.Link)
	other := attachCgroup(t, d, p)
	passes(t, workload, "198.51.100.1")
	blocked(t, workload, "203.0.113.1")

	checkResult(t, p, other, `"use_policy": {"name": "agents", "revision": "a1"}`, "APPLIED", "a1", "")
	put("a2", "203.0.113.0/24", "APPLIED")
	blocked(t, workload, "198.51.100.1")
	passes(t, workload, "203.0.113.1")
	for _, user := range []string{id, other} {
		if s := d.Show(t, user); words(s.Policy) != "allowlist, allow 203.0.113.0/24, dns disabled" || s.Applied.Revision != "a2" {
			t.Errorf("%s: %+v", user, s)
		}
	}
	checkResult(t, p, id, `"deny_cidr": {"cidr": "203.0.113.1"}`, "REFUSED", "a2", "command")
	checkResult(t, p, "", `"delete_policy": "agents"`, "REFUSED", "", "delete_policy")

	d.Kill(t)
	p.Ended()
	passes(t, workload, "203.0.113.1")
	d.Start(t)
	request := p.Connect()
	if want := []policyRef{{"agents", "a2"}}; !slices.Equal(request.Policies, want) {
		t.Errorf("SyncRequest has the policies %v, want %v", request.Policies, want)
	}
	for _, a := range request.Attachments {
		if a.Applied == nil || a.Applied.PolicyName != "agents" || a.Applied.Revision != "a2" {
			t.Errorf("%s: applied %+v", a.ID, a.Applied)
		}
	}
	put("a3", "198.51.100.0/24", "APPLIED")
	passes(t, workload, "198.51.100.1")
	blocked(t, workload, "203.0.113.1")

	// An update of its own takes an attachment out.
	checkResult(t, p, other, `"revision": "o1", "bulk_update": {"mode": "POLICY_MODE_BLOCK_ALL"}`, "APPLIED", "o1", "")
	checkResult(t, p, id, `"revision": "i1", "bulk_update": {"mode": "POLICY_MODE_BLOCK_ALL"}`, "APPLIED", "i1", "")
	checkResult(t, p, "", `"delete_policy": "agents"`, "APPLIED", "", "")
	if s := d.Show(t, id); words(s.Policy) != "block-all, dns disabled" {
		t.Errorf("policy %+v", s.Policy)
	}
}

// A control plane that knows the published messages only takes over from one that does not: it is told nothing that it
// would have to know, and a BulkUpdate is the policy, whatever was there.
func TestPublishedAfterNamed(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromOurs)
	checkResult(t, p, "", `"put_policy": {"name": "agents", "revision": "a1", "policy": {"mode": "POLICY_MODE_DENYLIST"}}`, "APPLIED", "a1", "")
	id := attach(t, d, p, `{"use_policy": {"name": "agents"}}`, "--cgroup", testenv.NewCgroup(t).Path)
	p.Stop()
	p.from = builtFromPublished
	p.Start()
	p.Connect()
	p.Send(`{"id": %q, "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST"}}`, id)
	p.Send(`{"id": %q, "allow_cidr": {"cidr": "192.0.2.0/24"}}`, id)
	await(t, d, id, "update", func(s harness.Shown) bool { return words(s.Policy) == "allowlist, allow 192.0.2.0/24, dns disabled" })
}

// A policy that the daemon holds by its name is the first of an attachment, whether or not the control plane is there,
// which learns of it and may give another.
func TestAttachByPolicyName(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromOurs)
	args := []string{"attach", "--interface", w.Link, "--policy-name", "agents"}
	if r := d.Run(t, args...); r.Code != 1 || !strings.Contains(r.Stderr, `the control plane has sent no policy "agents"`) {
		t.Errorf("before it was sent: %+v", r)
	}
	checkResult(t, p, "", `"put_policy": {"name": "agents", "revision": "a1", "policy":
		{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "198.51.100.0/24"}]}}`, "APPLIED", "a1", "")
	p.Stop()
	id := d.Must(t, args...)
	passes(t, workload, "198.51.100.1")
	blocked(t, workload, "203.0.113.1")
	p.Start()
	s := p.Sync()
	p.Send(welcome)
	if len(s.Attachments) != 1 || s.Attachments[0].ID != id || s.Attachments[0].Applied == nil || s.Attachments[0].Applied.PolicyName != "agents" {
		t.Errorf("told %+v", s.Attachments)
	}
	other := d.Must(t, "attach", "--cgroup", testenv.NewCgroup(t).Path, "--policy-name", "agents")
	if told := p.Subscribed(); told.ID != other || told.Applied == nil || told.Applied.PolicyName != "agents" || told.Applied.Revision != "a1" {
		t.Errorf("told %+v", told)
	}
	checkResult(t, p, id, `"revision": "o1", "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "203.0.113.0/24"}]}`, "APPLIED", "o1", "")
	blocked(t, workload, "198.51.100.1")
	passes(t, workload, "203.0.113.1")
}
