// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestRunAudit lets the same command reach all, and says what it would have been denied: without a daemon and with one.
func TestRunAudit(t *testing.T) {
	for _, by := range []string{"itself", "daemon"} {
		t.Run(by, func(t *testing.T) {
			s := newFenced(t, testenv.Zone{Records: []string{
				"www.allowed.example. 60 IN A 203.0.113.1", "www.other.example. 60 IN A 203.0.113.2",
			}})
			if by == "daemon" {
				s.Start(t)
			}
			path := filepath.Join(t.TempDir(), "report.json")
			r := s.run(t, fenced{}, "--audit", "--allow", "198.51.100.0/24", "--allow", "*.allowed.example", "--report", path,
				"--", "bash", "-c", verdicts)
			if want := "reached-address\nreached-forbidden\nreached-name\nreached-forbidden-name\n"; r.Code != 3 || r.Stdout != want {
				t.Errorf("exit code %d, want the command's, 3; it says:\n%s%s", r.Code, r.Stdout, r.Stderr)
			}
			title, lines, _ := strings.Cut(r.Stderr, "\n")
			if title != "netfenced run: would be denied" {
				t.Errorf("the summary is\n%s", r.Stderr)
			}
			for _, would := range []string{"name www.other.example", "203.0.113.9:7/tcp, no-rule", "203.0.113.2:7/tcp, no-rule"} {
				if !strings.Contains(lines, would) {
					t.Errorf("the summary does not speak of %s:\n%s", would, r.Stderr)
				}
			}
			if strings.Contains(lines, "198.51.100.9") || strings.Contains(lines, "allowed.example") || strings.Contains(lines, "203.0.113.1:") {
				t.Errorf("the summary speaks of what rules allow:\n%s", r.Stderr)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var report struct {
				Audit          bool
				Denied         []struct{ Address string }
				WouldDeny      []struct{ Address string } `json:"would_deny"`
				DNSRefused     []struct{ Name string }    `json:"dns_refused"`
				DNSWouldRefuse []struct{ Name string }    `json:"dns_would_refuse"`
			}
			if err := json.Unmarshal(text, &report); err != nil {
				t.Fatal(err)
			}
			if !report.Audit || len(report.Denied)+len(report.DNSRefused) > 0 || len(report.DNSWouldRefuse) != 1 ||
				!slices.ContainsFunc(report.WouldDeny, func(d struct{ Address string }) bool { return d.Address == "203.0.113.9" }) {
				t.Errorf("report: %s", text)
			}
			if by == "itself" {
				s.nothingLeft(t)
			}
			s.nobodyElseAsked(t)
		})
	}
}
