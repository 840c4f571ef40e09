// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// TestKilledUnderLoad again and again, whatever it was doing: a policy was just being changed, a cgroup attached.
func TestKilledUnderLoad(t *testing.T) {
	killUnderLoad(t, rounds(6, 500), 0)
}

// BenchmarkKilledUnderLoad is the same with enough packets to tell something: 300,000 of each kind, and more where
// starting takes longer.
func BenchmarkKilledUnderLoad(b *testing.B) {
	const rounds, each = 20, 2_000
	for b.Loop() {
		all := killUnderLoad(b, rounds, each)
		fmt.Printf("killed and started %d times: %d allowed packets sent, %d arrived; %d forbidden ones sent, %d arrived\n",
			rounds, all.allowed, all.arrived, all.forbidden, all.passed)
		b.ReportMetric(float64(all.allowed), "allowed")
		b.ReportMetric(float64(all.allowed-all.arrived), "lost")
		b.ReportMetric(float64(all.forbidden), "forbidden")
		b.ReportMetric(float64(all.passed), "passed")
	}
}

// killUnderLoad waits in each round until each flood has brought as many packets, half of them without a daemon.
func killUnderLoad(t testing.TB, rounds, each int) traffic {
	s := newScene(t, testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	job := testenv.StartWorkload(t, s.Host, cg)
	s.Policy(t, "policy.yaml", restartPolicy)
	s.Start(t)
	ids := []string{s.Attach(t, "--interface", s.Link), s.Attach(t, "--cgroup", cg.Path)}
	fs := append(s.floods(t, "interface", s.Inside, 10), s.floods(t, "cgroup", job, 11)...)
	for round := range rounds {
		name := fmt.Sprintf("round-%d", round)
		late := testenv.NewCgroup(t)
		attach := s.Command("attach", "--cgroup", late.Path, "--key", name)
		testenv.Start(t, attach, s.Host, nil)
		last := fmt.Sprintf("192.0.2.%d/32", round%200+10)
		s.Policy(t, "policy.yaml", restartPolicy+"  - "+last+"\n")
		// Not a pause for something to happen, but a moment to be interrupted in, another in every round.
		s.Arrived.Await(t, s.Arrived.Sum(t, udp(fs[0].allowed)).Count+round*97%1000, udp(fs[0].allowed))
		s.Kill(t)
		s.flowing(t, fs, each/2)
		_ = attach.Wait() // it may have been answered before, or not

		s.Start(t)
		key := s.Attach(t, "--cgroup", late.Path, "--key", name)
		list := s.List(t)
		if len(list) != 3 || !slices.ContainsFunc(list, func(a harness.Attachment) bool { return a.ID == key && a.Target == late.Path }) {
			t.Fatalf("round %d: %+v", round, list)
		}
		for _, id := range ids {
			testenv.Eventually(t, "newest policy in force", func() bool {
				rules := s.Show(t, id).Policy.Allow
				return len(rules) == 4 && rules[3].Prefix.String() == last
			})
		}
		s.flowing(t, fs, each/2)
		s.Must(t, "detach", "--key", name)
		late.Remove(t)
		s.onlyPinned(t, ids...)
	}
	return s.end(t, fs)
}

// onlyPinned shows that the kernel holds links of these attachments and no other.
func (s *scene) onlyPinned(t testing.TB, ids ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.BPFDir, "v3", "links"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	slices.Sort(ids)
	if !slices.Equal(names, ids) {
		t.Errorf("links of %v are pinned, want %v", names, ids)
	}
}
