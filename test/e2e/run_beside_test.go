// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

func addrPort(addr string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), echoPort)
}

// pair is a command that says that it runs, waits for a line, and tries two addresses and two names.
var pair = "echo running; read; " + strings.Join([]string{
	connect("203.0.113.11") + " && echo one", connect("203.0.113.12") + " && echo two",
	connect("one.example") + " && echo name-one", connect("two.example") + " && echo name-two", "echo end",
}, "; ")

var pairZone = testenv.Zone{Records: []string{"one.example. 60 IN A 203.0.113.21", "two.example. 60 IN A 203.0.113.22"}}

// TestRunTwoAtOnce: each has its own rules, names and end.
func TestRunTwoAtOnce(t *testing.T) {
	s := newFenced(t, pairZone)
	s.twoAtOnce(t)
	s.nothingLeft(t)
	s.nobodyElseAsked(t)
}

// TestRunBesideADaemon has the daemon do it, beside its own attachments, and goes from its list in the end.
func TestRunBesideADaemon(t *testing.T) {
	s := newFenced(t, pairZone)
	s.Policy(t, "names.yaml", allowing("one.example"))
	s.Start(t)
	id := s.attach(t, s.job)
	s.twoAtOnce(t)
	if list := s.List(t); len(list) != 1 || list[0].ID != id {
		t.Errorf("list after two runs: %+v", list)
	}
	s.resolves(t, s.job, "one.example", "203.0.113.21")
	s.reaches(t, s.job, true, "203.0.113.21")

	// The daemon dies: the fence stands.
	f := s.fence(t, fenced{}, "--allow", "203.0.113.11", "--", "bash", "-c", pair)
	f.line(t)
	s.Kill(t)
	if _, err := f.stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if r := f.end(t); r.Stdout != "one\nend\n" {
		t.Errorf("with a daemon that died, the command says:\n%s%s", r.Stdout, r.Stderr)
	}
	// What it left goes when somebody can take it away.
	s.Start(t)
	testenv.Eventually(t, "the fence is gone from the list", func() bool { return len(s.List(t)) == 1 })
	s.nobodyElseAsked(t)
}

func (s *named) twoAtOnce(t *testing.T) {
	t.Helper()
	one := s.fence(t, fenced{}, "--allow", "203.0.113.11", "--allow", "one.example", "--", "bash", "-c", pair)
	two := s.fence(t, fenced{}, "--allow", "203.0.113.12", "--allow", "two.example", "--", "bash", "-c", pair)
	cgroups := map[*fence]string{}
	for _, f := range []*fence{one, two} {
		f.line(t)
		cgroups[f] = f.cgroup(t)
	}
	if cgroups[one] == cgroups[two] {
		t.Errorf("both are in %s", cgroups[one])
	}
	for _, f := range []*fence{one, two} {
		if _, err := f.stdin.Write([]byte("go\n")); err != nil {
			t.Fatal(err)
		}
	}
	for f, want := range map[*fence]string{one: "one\nname-one\nend\n", two: "two\nname-two\nend\n"} {
		if r := f.end(t); r.Code != 0 || r.Stdout != want {
			t.Errorf("exit code %d, the command says:\n%s, want\n%s%s", r.Code, r.Stdout, want, r.Stderr)
		}
		if _, err := os.Stat(cgroups[f]); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", cgroups[f], err)
		}
	}
}

// TestRunInAnAttachedCgroup: both must allow, and neither is there to loosen the other.
func TestRunInAnAttachedCgroup(t *testing.T) {
	s := newFenced(t, pairZone)
	s.Policy(t, "outer.yaml", "mode: allowlist\nallow: ["+alwaysAllowed+", 203.0.113.11, 203.0.113.12]\ndns: {allow: [one.example]}\n")
	s.Start(t)
	s.attach(t, s.job)
	f := s.fence(t, fenced{cg: s.job.cg}, "--allow", "203.0.113.11", "--allow", "one.example", "--allow", "two.example", "--", "bash", "-c", pair)
	f.line(t)
	inner := f.cgroup(t)
	if !strings.HasPrefix(inner, s.job.cg.Path+"/") {
		t.Errorf("the command is in %s, outside the cgroup that it was started in, %s", inner, s.job.cg.Path)
	}
	if _, err := f.stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if r := f.end(t); r.Code != 0 || r.Stdout != "one\nname-one\nend\n" {
		t.Errorf("exit code %d, the command says:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	s.reaches(t, s.job, true, "203.0.113.12") // the outer one is what it was
	s.nobodyElseAsked(t)
}

// TestRunKilled: if run dies, so does the command, and the next run takes away what it left.
func TestRunKilled(t *testing.T) {
	for name, daemon := range map[string]bool{"alone": false, "with a daemon": true} {
		t.Run(name, func(t *testing.T) {
			s := newFenced(t, pairZone)
			if daemon {
				s.Start(t)
			}
			// A child that is nobody's to be killed by parentage.
			f := s.fence(t, fenced{}, "--allow", "203.0.113.11", "--", "bash", "-c", "setsid sleep 600 & echo running; read")
			f.line(t)
			cgroup := f.cgroup(t)
			if err := f.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = f.cmd.Wait()
			testenv.Eventually(t, "nothing runs in "+cgroup, func() bool {
				procs, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
				return len(procs) == 0 || err != nil
			})
			if r := s.run(t, fenced{}, "--", "true"); r.Code != 0 {
				t.Errorf("the next run: exit code %d:\n%s", r.Code, r.Stderr)
			}
			testenv.Eventually(t, cgroup+" is gone", func() bool {
				_, err := os.Stat(cgroup)
				return os.IsNotExist(err)
			})
			if daemon {
				testenv.Eventually(t, "the list is empty", func() bool { return len(s.List(t)) == 0 })
			}
			s.nothingLeft(t)
		})
	}
}
