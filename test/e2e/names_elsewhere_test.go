// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestNamesInAContainer: a container whose cgroup and whose interface are attached, as the runtime would. Both must allow
// a name and both learn it, or what one lets out the other would drop; Docker's resolver at 127.0.0.11 is not asked.
func TestNamesInAContainer(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Numbered: map[string][]netip.Prefix{
		"matrix.example.": matrixPrefixes, "inner.example.": matrixPrefixes, "outer.example.": matrixPrefixes,
	}})
	testenv.EchoServer(t, s.Workload, 53)
	s.Policy(t, "cgroup.yaml", "match: {which: cgroup}\n"+allowing("*.matrix.example", "*.inner.example"))
	s.Policy(t, "interface.yaml", "match: {which: interface}\n"+allowing("*.matrix.example", "*.outer.example"))
	s.Start(t)
	cg := testenv.NewCgroup(t)
	container := place{testenv.StartWorkload(t, s.Workload, cg), "container", s.Workload, cg, []string{"--cgroup", cg.Path}}
	ids := []string{
		s.attach(t, container, "--metadata", "which=cgroup"),
		s.attach(t, s.inside, "--metadata", "which=interface"),
	}
	resolve := func(when string, first int) {
		t.Helper()
		lookups := matrix([]string{public, public6, gateway, localStub, dockerStub})
		for i := range lookups {
			lookups[i].Name = fmt.Sprintf("n%d.matrix.example", first+i)
		}
		var addrs []string
		for i, a := range s.lookAll(t, container, lookups) {
			addrs = append(addrs, s.checkAnswer(t, lookups[i], a, first+i))
		}
		s.reaches(t, container, true, addrs...)
		for _, id := range ids {
			if n := len(s.learned(t, id)); n < len(lookups) {
				t.Errorf("%s: %s has learned %d addresses, want those of %d names", when, id, n, len(lookups))
			}
		}
	}
	resolve("attached while it runs", 1)
	for _, name := range []string{"n120.inner.example", "n121.outer.example"} {
		if a := s.dig(t, container, name); a.Status != "NXDOMAIN" {
			t.Errorf("%s, which one of them allows: %s", name, a)
		}
	}
	s.reaches(t, container, false, "203.0.113.120", "203.0.113.121")
	// Who is in the container and not in its cgroup is the interface's alone.
	s.resolves(t, s.inside, "n121.outer.example", "203.0.113.121")
	s.reaches(t, container, false, "203.0.113.121")

	s.Kill(t)
	if a := s.look(t, container, testenv.Lookup{Name: "n122.matrix.example", Wait: 1e9}); len(a.Addrs) != 0 || a.Unknown {
		t.Errorf("without a daemon: %s", a)
	}
	s.restart(t, container)
	resolve("after a restart", 50)
	s.nobodyElseAsked(t)
}

// TestNamesInANamespaceEnteredLater: the first query from there is refused and has the daemon look.
func TestNamesInANamespaceEnteredLater(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Numbered: map[string][]netip.Prefix{"matrix.example.": matrixPrefixes}})
	s.Policy(t, "names.yaml", allowing("*.matrix.example"))
	s.Start(t)
	s.attach(t, s.job)
	container := s.job
	container.Workload, container.ns = testenv.StartWorkload(t, s.Workload, s.job.cg), s.Workload
	testenv.Eventually(t, "answers", func() bool {
		return sameAddrs(s.dig(t, container, "n1.matrix.example").Addrs, "203.0.113.1")
	})
	s.nobodyElseAsked(t)
}
