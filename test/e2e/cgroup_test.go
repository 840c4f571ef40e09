// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestCgroup is the table for processes of the host: those of a cgroup and of its grandchildren, and nobody else.
func TestCgroup(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	cg, sibling := testenv.NewCgroup(t), testenv.NewCgroup(t)
	job := testenv.StartWorkload(t, s.Host, cg)
	grandchild := testenv.StartWorkload(t, s.Host, cg.Child(t, "a").Child(t, "b"))
	beside := testenv.StartWorkload(t, s.Host, sibling)
	job.Serve(t, servedPort)
	s.Policy(t, "table.yaml", tablePolicy)
	s.Start(t)
	id := s.Attach(t, "--cgroup", cg.Path)
	if list := s.List(t); len(list) != 1 || list[0].ID != id || list[0].Target != cg.Path || list[0].Type != "cgroup" {
		t.Fatalf("list: %+v", list)
	}

	s.check(t, job, table, earlyRefusal)
	s.checkReplies(t, job, hostAddrs, earlyRefusal)
	s.check(t, grandchild, table, earlyRefusal)
	born := testenv.StartWorkload(t, s.Host, cg.Child(t, "later"))
	s.check(t, born, table, earlyRefusal)
	for _, free := range []*testenv.Workload{beside, s.OnHost, s.Inside} {
		s.check(t, free, all(true), nil)
	}

	s.Must(t, "detach", "--id", id)
	s.check(t, job, all(true), nil)
	s.checkRepliesUnfiltered(t, job, hostAddrs)
}

// TestNestedCgroups must all allow.
func TestNestedCgroups(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	outer := testenv.NewCgroup(t)
	inner := outer.Child(t, "inner")
	job := testenv.StartWorkload(t, s.Host, inner)
	s.Policy(t, "outer.yaml", "match: {which: outer}\nmode: allowlist\nallow: [198.51.100.0/24, 2001:db8:100::/48, 203.0.113.9]\n")
	s.Policy(t, "inner.yaml", "match: {which: inner}\nmode: allowlist\nallow: [198.51.100.0/24, 2001:db8:100::/48, 203.0.113.10]\n")
	s.Start(t)
	ids := map[string]string{}
	for name, cg := range map[string]*testenv.Cgroup{"outer": outer, "inner": inner} {
		ids[name] = s.Attach(t, "--cgroup", cg.Path, "--metadata", "which="+name)
	}
	both := row{"both allow", "198.51.100.9:7", every, false, true}
	onlyOuter := row{"only the outer allows", "203.0.113.9:7", every, false, false}
	onlyInner := row{"only the inner allows", "203.0.113.10:7", every, false, false}
	s.check(t, job, []row{both, onlyOuter, onlyInner}, earlyRefusal)

	// Without the inner one the outer one decides alone.
	s.Must(t, "detach", "--id", ids["inner"])
	onlyOuter.pass = true
	s.check(t, job, []row{both, onlyOuter, onlyInner}, earlyRefusal)
	s.Must(t, "detach", "--id", ids["outer"])
	onlyInner.pass = true
	s.check(t, job, []row{both, onlyOuter, onlyInner}, nil)
}
