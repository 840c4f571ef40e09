// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// TestAudit: what the policy forbids passes, and list, status and events say what would have become of it; without
// audit it is dropped, and they say that.
func TestAudit(t *testing.T) {
	s := newNamed(t, testenv.VethDevice, testenv.Zone{Records: []string{
		"www.good.example. 60 IN A 203.0.113.1", "www.bad.example. 60 IN A 203.0.113.2", "in.good.example. 60 IN A 10.99.0.1",
	}})
	const rules = "mode: allowlist\nallow: [" + alwaysAllowed + "]\ndeny: [203.0.113.9]\ndns: {allow: ['*.good.example']}\n"
	s.Policy(t, "names.yaml", "audit: true\n"+rules)
	s.Start(t)
	sum := map[string]uint64{}
	s.both(t, func(t *testing.T, p place, id string) {
		events := s.Follow(t, "--id", id)
		s.reaches(t, p, true, "203.0.113.2", "203.0.113.9")
		s.resolves(t, p, "www.bad.example", "203.0.113.2")
		s.resolves(t, p, "in.good.example", "10.99.0.1")
		s.resolves(t, p, "www.good.example", "203.0.113.1")
		before := s.one(t, id)
		s.reaches(t, p, true, "203.0.113.1") // learned, so nothing is against it
		got := s.one(t, id)
		if got.PacketsBlocked != 0 || len(got.Drops) > 0 || got.DNSBlocked != 0 {
			t.Errorf("counted as dropped: %+v", got)
		}
		if got.WouldDeny["no-rule"] == 0 || got.WouldDeny["deny-rule"] == 0 || got.DNSWouldDeny != 2 {
			t.Errorf("counted as would-deny: %+v", got)
		}
		if n := got.WouldDeny["no-rule"] - before.WouldDeny["no-rule"]; n != 0 {
			t.Errorf("%d packets to a learned address would have been denied", n)
		}
		events.Provoke(t, "a packet that would be denied, with the rule", func() { s.reaches(t, p, true, "203.0.113.9") }, func(e harness.Event) bool {
			f := e.DeniedFlow
			return f != nil && f.Address == "203.0.113.9" && f.Reason == "deny-rule" && f.Rule == "deny 203.0.113.9/32" && f.WouldDeny
		})
		events.Provoke(t, "a name that would be refused", func() { s.dig(t, p, "www.bad.example") }, func(e harness.Event) bool {
			d := e.DNSDecision
			return d != nil && d.Domain == "www.bad.example" && !d.Allowed && d.WouldDeny
		})
		for reason, n := range s.one(t, id).WouldDeny {
			sum[reason] += n
		}
	})
	if got := s.Status(t); got.WouldDeny["deny-rule"] != sum["deny-rule"] || len(got.Drops) > 0 {
		t.Errorf("status: %+v, want %v", got, sum)
	}

	s.Policy(t, "names.yaml", rules)
	for _, p := range []place{s.inside, s.job} {
		testenv.Eventually(t, "the audit ends", func() bool { return len(s.dig(t, p, "www.bad.example").Addrs) == 0 })
		s.reaches(t, p, false, "203.0.113.9")
		s.reaches(t, p, true, "203.0.113.1")
	}
	if got := s.Status(t); got.Drops["deny-rule"] == 0 {
		t.Errorf("status: %+v", got)
	}
}

// one is the attachment with the id, as it is listed.
func (s *named) one(t *testing.T, id string) harness.Attachment {
	t.Helper()
	for _, a := range s.List(t) {
		if a.ID == id {
			return a
		}
	}
	t.Fatalf("%s is not listed", id)
	return harness.Attachment{}
}
