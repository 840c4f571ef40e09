// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/netfence/netfence/internal/testenv"
)

const (
	exited verdict = "exits"
	told   verdict = "told"
)

// job is the command that is fenced: it tries two names and an address, by the resolver that the machine has.
const job = `for host in files.pypi.example paste.example 203.0.113.9; do
  timeout 1 bash -c "echo hello > /dev/tcp/$host/443" 2>/dev/null && echo "$host: reached" || echo "$host: not reached"
done; exit 7`

// fence runs one command without a daemon.
func (p *play) fence() {
	p.goOn()
	say(`
Without a daemon, a policy or an image: one command in a cgroup of its own, gone when it ends. The command tries
files.pypi.example, paste.example and 203.0.113.9, and exits with 7.`)
	prompt("netfenced run --allow '*.pypi.example:443' -- ./job")
	cmd := p.daemon.Command("run", "--allow", "*.pypi.example:443", "--", "bash", "-c", job)
	cmd.Env = append(cmd.Env, "NETFENCE_BPF_DIR="+p.daemon.BPFDir, "NETFENCE_RUN_DIR="+p.daemon.RunDir, "NETFENCE_DATA_DIR="+filepath.Join(p.daemon.Dir, "data"))
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	testenv.Start(p, cmd, p.world.Host, nil)
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		p.Fatalf("netfenced run: %v", err)
	}
	quote(stdout.String())
	quote(stderr.String())
	p.outcome(cmd, stdout.String(), stderr.String())
}

func (p *play) outcome(cmd *exec.Cmd, stdout, stderr string) {
	says := func(text, part string, want verdict, tried, happened, why string) {
		got := want
		if !strings.Contains(text, part) {
			got = "not " + want
		}
		p.verdict(want, got, tried, happened, why)
	}
	says(stdout, "files.pypi.example: reached", passes, "files.pypi.example:443", "reached", "allow *.pypi.example:443")
	says(stdout, "paste.example: not reached", nxdomain, "paste.example", "not reached", "no such name, for the command")
	says(stdout, "203.0.113.9: not reached", refused, "203.0.113.9:443", "not reached", "an address that no answer named")
	says(stderr, "paste.example", told, "paste.example", "in the summary", "what it was denied is said in the end")
	says(stderr, "203.0.113.9", told, "203.0.113.9", "in the summary", "by name and by address")
	got := exited
	if cmd.ProcessState.ExitCode() != 7 {
		got = "exits otherwise"
	}
	p.verdict(exited, got, "the command", fmt.Sprintf("exit code %d", cmd.ProcessState.ExitCode()), "its own")
	p.nobodyAsked()
}
