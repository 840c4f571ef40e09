// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestInheritLearned: a copy of a workload goes on where the other was, without asking, as far as its policy says.
func TestInheritLearned(t *testing.T) {
	zone := testenv.Zone{Records: []string{"www.example. 600 IN A 203.0.113.1", "other.example. 600 IN A 203.0.113.2"}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "first.yaml", "match: {as: first}\n"+allowing("www.example", "other.example"))
	s.Policy(t, "copy.yaml", "match: {as: copy}\n"+allowing("www.example"))
	s.Start(t)
	first := s.attach(t, s.inside, "--metadata", "as=first")
	s.resolves(t, s.inside, "www.example", "203.0.113.1")
	s.resolves(t, s.inside, "other.example", "203.0.113.2")
	asked := s.Upstream.AskedFor("www.example")

	alone := s.newJob(t, testenv.NewCgroup(t), "alone")
	s.attach(t, alone, "--metadata", "as=copy")
	s.reaches(t, alone, false, "203.0.113.1", "203.0.113.2")

	id := s.attach(t, s.job, "--metadata", "as=copy", "--inherit-learned-from", first)
	s.reaches(t, s.job, true, "203.0.113.1")
	s.reaches(t, s.job, false, "203.0.113.2")
	if got := s.learned(t, id); len(got) != 1 || len(got["203.0.113.1"]) != 1 || got["203.0.113.1"][0] != "www.example" {
		t.Errorf("policy show: %v", got)
	}
	if n := s.Upstream.AskedFor("www.example"); n != asked {
		t.Errorf("%d questions for www.example, %d before", n, asked)
	}
}
