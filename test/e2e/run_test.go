// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

var fencedZone = testenv.Zone{Records: []string{
	"www.allowed.example. 60 IN A 203.0.113.1", "*.other.example. 60 IN A 203.0.113.2",
}}

// verdicts is a script that prints what can be reached.
var verdicts = strings.Join([]string{
	connect("198.51.100.9") + " && echo reached-address",
	connect("203.0.113.9") + " && echo reached-forbidden",
	connect("www.allowed.example") + " && echo reached-name",
	connect("www.other.example") + " && echo reached-forbidden-name",
	"exit 3",
}, "\n")

// TestRun is one command in a fence, as root and as who called sudo: what it reaches, what it is told of what it does
// not, and nothing left afterwards.
func TestRun(t *testing.T) {
	s := newFenced(t, fencedZone)
	for name, env := range map[string][]string{"root": nil, "sudo": {"SUDO_UID=65534", "SUDO_GID=65534", "SUDO_USER=nobody"}} {
		t.Run(name, func(t *testing.T) {
			before := s.Arrived.Sum(t, matches(testenv.Probe{Kind: testenv.TCP, To: addrPort("203.0.113.9")})).Count
			report := filepath.Join(publicDir(t), "report.json") // written by whose command it is
			r := s.run(t, fenced{env: env}, "--allow", "198.51.100.0/24", "--allow", "*.allowed.example", "--report", report, "--", "bash", "-c", verdicts)
			if r.Code != 3 || r.Stdout != "reached-address\nreached-name\n" {
				t.Errorf("exit code %d, want the command's, 3; it says:\n%s%s", r.Code, r.Stdout, r.Stderr)
			}
			for _, denied := range []string{"203.0.113.9:7", "www.other.example"} {
				if !strings.Contains(r.Stderr, denied) {
					t.Errorf("the summary does not speak of %s:\n%s", denied, r.Stderr)
				}
			}
			if strings.Contains(r.Stderr, "198.51.100.9") || strings.Contains(r.Stderr, "allowed.example") {
				t.Errorf("the summary speaks of what was not denied:\n%s", r.Stderr)
			}
			text, err := os.ReadFile(report)
			if err != nil {
				t.Fatalf("report: %v", err)
			}
			if !json.Valid(text) || !strings.Contains(string(text), "203.0.113.9") || !strings.Contains(string(text), "www.other.example") {
				t.Errorf("report: %s", text)
			}
			if n := s.Arrived.Sum(t, matches(testenv.Probe{Kind: testenv.TCP, To: addrPort("203.0.113.9")})).Count - before; n != 0 {
				t.Errorf("%d packets to what is forbidden arrived", n)
			}
			s.nothingLeft(t)
		})
	}
	// The same script without the fence reaches all: whom the machine's resolver asks is not this test's to say.
	for _, addr := range []string{"198.51.100.9", "203.0.113.9"} {
		if !s.opens(t, place{Workload: s.OnHost}, addr) {
			t.Errorf("without the fence %s is not reached", addr)
		}
	}
	s.nobodyElseAsked(t)
}

// publicDir is a directory that everyone may write to.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "netfence-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRunAsWho: the command is the one who called sudo, can become nobody else, and is in a cgroup of its own that goes
// away.
func TestRunAsWho(t *testing.T) {
	s := newFenced(t, testenv.Zone{})
	f := s.fence(t, fenced{env: []string{"SUDO_UID=65534", "SUDO_GID=65534", "SUDO_USER=nobody"}}, "--",
		"bash", "-c", "id -u; id -g; id -G; grep -E '^(NoNewPrivs|CapEff|CapBnd):' /proc/self/status | tr '\\n\\t' '  '; echo; cat")
	for _, want := range []string{"65534", "65534", "65534"} {
		if got := f.line(t); got != want {
			t.Errorf("id: %q, want %q", got, want)
		}
	}
	status := f.line(t)
	if !strings.Contains(status, "NoNewPrivs: 1") || !strings.Contains(status, "CapEff: 0000000000000000") {
		t.Errorf("status: %s", status)
	}
	cgroup := f.cgroup(t)
	if r := f.end(t); r.Code != 0 {
		t.Errorf("exit code %d:\n%s", r.Code, r.Stderr)
	}
	if _, err := os.Stat(cgroup); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", cgroup, err)
	}
	s.nothingLeft(t)
}

func TestRunExitCodes(t *testing.T) {
	s := newFenced(t, testenv.Zone{})
	script := filepath.Join(t.TempDir(), "not-executable")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args []string
		code int
		says string
	}{
		"success":            {[]string{"--", "true"}, 0, ""},
		"failure":            {[]string{"--", "sh", "-c", "exit 42"}, 42, ""},
		"signal":             {[]string{"--", "sh", "-c", "kill -TERM $$"}, 128 + int(unix.SIGTERM), ""},
		"killed":             {[]string{"--", "sh", "-c", "kill -KILL $$"}, 128 + int(unix.SIGKILL), ""},
		"no such command":    {[]string{"--", "no-such-command"}, 127, "no-such-command"},
		"not executable":     {[]string{"--", script}, 126, "not-executable"},
		"no such policy":     {[]string{"--policy", "/nonexistent.yaml", "--", "true"}, 125, "/nonexistent.yaml"},
		"bad rule":           {[]string{"--allow", "10.0.0.1/8", "--", "true"}, 125, "10.0.0.0/8"},
		"no command":         {nil, 125, "netfenced run"},
		"unknown flag":       {[]string{"--alow", "x", "--", "true"}, 125, "alow"},
		"arguments are kept": {[]string{"--", "sh", "-c", "test \"$1\" = --allow", "sh", "--allow"}, 0, ""},
	} {
		r := s.run(t, fenced{}, test.args...)
		if r.Code != test.code || !strings.Contains(r.Stderr, test.says) {
			t.Errorf("%s: exit code %d, want %d; stderr, want %q in it:\n%s", name, r.Code, test.code, test.says, r.Stderr)
		}
	}
	s.nothingLeft(t)
}

// TestRunSignals: what run is sent, the command gets.
func TestRunSignals(t *testing.T) {
	s := newFenced(t, testenv.Zone{})
	for name, signal := range map[string]unix.Signal{"TERM": unix.SIGTERM, "INT": unix.SIGINT, "HUP": unix.SIGHUP, "USR1": unix.SIGUSR1} {
		f := s.fence(t, fenced{}, "--", "bash", "-c", "trap 'echo got-"+name+"; exit 9' "+name+"; echo ready; while :; do read -t 0.1 || :; done")
		f.line(t)
		if err := f.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if got := f.line(t); got != "got-"+name {
			t.Errorf("%s: the command says %q", name, got)
		}
		if r := f.end(t); r.Code != 9 {
			t.Errorf("%s: exit code %d:\n%s", name, r.Code, r.Stderr)
		}
	}
	s.nothingLeft(t)
}

// TestRunByPolicyFile takes the same file as a daemon's folder, and flags beside it.
func TestRunByPolicyFile(t *testing.T) {
	s := newFenced(t, fencedZone)
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte("mode: allowlist\nallow: [198.51.100.0/24]\ndns: {allow: [\"*.other.example\"]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := s.run(t, fenced{}, "--policy", file, "--allow", "203.0.113.9", "--deny", "www.other.example", "--", "bash", "-c", verdicts)
	if r.Code != 3 || r.Stdout != "reached-address\nreached-forbidden\n" {
		t.Errorf("exit code %d, the command says:\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	s.nobodyElseAsked(t)
}
