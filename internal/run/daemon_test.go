// SPDX-License-Identifier: Apache-2.0

package run_test

import (
	"bytes"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// fenced begins a run of the program itself that waits for its standard input.
func fenced(t *testing.T, d *harness.Daemon, script string) (stdin io.Closer, kill func(), wait func() (int, string)) {
	t.Helper()
	cmd := d.Command("run", "--config", d.Config, "--", "bash", "-c", script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	testenv.Start(t, cmd, nil, nil)
	return stdin, func() { _ = cmd.Process.Kill() }, func() (int, string) {
		_ = cmd.Wait()
		return cmd.ProcessState.ExitCode(), stderr.String()
	}
}

// The daemon that runs has the filter, as one of its attachments.
func TestThroughTheDaemon(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	d := harness.New(t, nil)
	d.Start(t)

	stdin, _, wait := fenced(t, d, "read line; echo >/dev/tcp/203.0.113.9/80; exit 3")
	testenv.Eventually(t, "the daemon has it", func() bool {
		list := d.List(t)
		return len(list) == 1 && strings.Contains(list[0].Target, "netfence_run_") && list[0].Mode == "allowlist"
	})
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if code, stderr := wait(); code != 3 || !strings.Contains(stderr, "1 × 203.0.113.9:80/tcp, ") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if list := d.List(t); len(list) != 0 {
		t.Errorf("left in the daemon: %v", list)
	}

	// Killed, it leaves a filter around nobody, until the next run.
	_, kill, wait := fenced(t, d, "read line")
	testenv.Eventually(t, "the daemon has it", func() bool { return len(d.List(t)) == 1 })
	kill()
	wait()
	if r := d.Run(t, "run", "--config", d.Config, "--", "true"); r.Code != 0 || r.Stderr != "" {
		t.Errorf("the next run: %+v", r)
	}
	testenv.Eventually(t, "the daemon has let go of it", func() bool { return len(d.List(t)) == 0 })

	// The daemon dies while the command runs: it is filtered all the same.
	begun := filepath.Join(t.TempDir(), "begun")
	stdin, _, wait = fenced(t, d, ": >"+begun+"; read line; echo >/dev/tcp/203.0.113.9/80; exit $?")
	testenv.Eventually(t, "the command has begun", func() bool { return len(glob(t, begun)) == 1 })
	d.Kill(t)
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if code, stderr := wait(); code != 1 || !strings.Contains(stderr, "is gone: what was denied since then is not known") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// Nothing but the program is needed, and what a killed one has left goes with `detach --all`.
func TestWithoutADaemon(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	d := harness.New(t, nil)
	if r := d.Run(t, "run", "--config", d.Config, "--", "sh", "-c", "exit 5"); r.Code != 5 {
		t.Errorf("got %+v", r)
	}
	_, kill, wait := fenced(t, d, "read line")
	testenv.Eventually(t, "its pins are there", func() bool { return len(glob(t, d.BPFDir+"/run_*/v3/links/*")) == 1 })
	if r := d.Run(t, "detach", "--all", "--config", d.Config); r.Code != 0 || len(glob(t, d.BPFDir+"/run_*")) != 1 {
		t.Errorf("detach --all took a run that goes on: %+v", r)
	}
	kill()
	wait()
	if r := d.Run(t, "detach", "--all", "--config", d.Config); r.Code != 0 {
		t.Errorf("detach --all: %+v", r)
	}
	if left := append(glob(t, d.BPFDir), glob(t, d.RunDir+"/run/*")...); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// By sudo itself, as people do.
func TestSudo(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	d := harness.New(t, nil)
	// An account of the system's own: it has no password, and sudo asks root for none.
	for _, test := range []struct{ name, flags, script, want string }{
		{"user", "", "id -u; echo $HOME; sudo -n id -u 2>/dev/null || echo not again", "1\n/usr/sbin\nnot again\n"},
		{"as root", "--as-root", "id -u; grep CapEff /proc/self/status", "0\nCapEff:\t00000000a00405fb\n"},
		{"other", "--user 65534", "id -u", "65534\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			// The variables that sudo sets are of its caller, root; what another would find is put in their place.
			args := []string{"-n", "env", "SUDO_UID=1", "SUDO_GID=1", "SUDO_USER=daemon", d.Binary, "run", "--config", d.Config}
			args = append(append(args, strings.Fields(test.flags)...), "--", "sh", "-c", test.script)
			cmd := exec.Command("sudo", args...)
			cmd.Dir = "/"
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			testenv.Start(t, cmd, nil, nil)
			if err := cmd.Wait(); err != nil || stdout.String() != test.want {
				t.Errorf("%v: %q, want %q\n%s", err, &stdout, test.want, &stderr)
			}
		})
	}
}
