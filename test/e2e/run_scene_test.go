// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// fence is a `netfenced run` that goes on.
type fence struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer
}

// fenced is where and as whom to run.
type fenced struct {
	cg  *testenv.Cgroup
	env []string
}

// newFenced is a scene for `netfenced run`, whose pins, if no daemon has them, are beside a daemon's.
func newFenced(t *testing.T, z testenv.Zone) *named {
	t.Helper()
	s := newNamed(t, testenv.VethDevice, z)
	s.Env = append(s.Env, "NETFENCE_BPF_DIR="+s.BPFDir, "NETFENCE_RUN_DIR="+s.RunDir, "NETFENCE_DATA_DIR="+filepath.Join(s.Dir, "data"))
	return s
}

// fence starts `netfenced run` with these arguments.
func (s *named) fence(t *testing.T, where fenced, args ...string) *fence {
	t.Helper()
	f := &fence{cmd: s.Command(append([]string{"run"}, args...)...)}
	f.cmd.Env = append(f.cmd.Env, where.env...)
	f.cmd.Stderr = &f.stderr
	stdin, err := f.cmd.StdinPipe()
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	stdout, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	f.stdin, f.stdout = stdin, bufio.NewReader(stdout)
	testenv.Start(t, f.cmd, s.Host, where.cg)
	return f
}

// line is the next that the command printed.
func (f *fence) line(t *testing.T) string {
	t.Helper()
	text, err := f.stdout.ReadString('\n')
	if err != nil {
		_ = f.cmd.Wait()
		t.Fatalf("run: %v, %s\n%s", err, f.cmd.ProcessState, f.stderr.String())
	}
	return strings.TrimSuffix(text, "\n")
}

// end waits for it.
func (f *fence) end(t *testing.T) harness.Result {
	t.Helper()
	_ = f.stdin.Close()
	out, err := io.ReadAll(f.stdout)
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	_ = f.cmd.Wait() // which the exit code tells
	return harness.Result{Stdout: string(out), Stderr: f.stderr.String(), Code: f.cmd.ProcessState.ExitCode()}
}

// run is fence for a command that ends by itself.
func (s *named) run(t *testing.T, where fenced, args ...string) harness.Result {
	t.Helper()
	return s.fence(t, where, args...).end(t)
}

// cgroup is the directory of the command's cgroup, as the host sees it.
func (f *fence) cgroup(t *testing.T) string {
	t.Helper()
	own := cgroupOf(t, f.cmd.Process.Pid)
	var found string
	testenv.Eventually(t, "a process of the command in a cgroup of its own", func() bool {
		for _, pid := range descendants(t, f.cmd.Process.Pid) {
			if found = cgroupOf(t, pid); found != "" && found != own {
				return true
			}
		}
		return false
	})
	return found
}

// descendants of a process, in any namespace.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	children := map[int][]int{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// "PID (name) state PPID …", and the name may hold anything (proc(5)).
		after := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		var child, parent int
		if _, err := fmt.Sscan(string(text), &child); err != nil || len(after) < 2 {
			t.Fatalf("%s: %s", path, text)
		}
		if _, err := fmt.Sscan(after[1], &parent); err != nil {
			t.Fatalf("%s: %s", path, text)
		}
		children[parent] = append(children[parent], child)
	}
	all := children[pid]
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// cgroupOf is the directory of the cgroup that the process is in; empty: it has ended.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
				if _, err := os.Stat(filepath.Join(root, path, "cgroup.procs")); err == nil {
					return filepath.Join(root, path)
				}
			}
		}
	}
	return ""
}

// connect is a shell's word for a connection to where everything echoes. Its exit code tells whether it came about. What
// may not is refused at once.
func connect(to string) string {
	return fmt.Sprintf("timeout %d bash -c 'echo hello > /dev/tcp/%s/%d' 2>/dev/null", 10*testenv.Slow, to, echoPort)
}

// nothingLeft shows that no pin of a run is there.
func (s *named) nothingLeft(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(s.BPFDir))
	if err != nil {
		t.Fatalf("pins: %v", err)
	}
	for _, dir := range entries {
		pins, err := filepath.Glob(filepath.Join(filepath.Dir(s.BPFDir), dir.Name(), "run_*"))
		if err != nil || len(pins) != 0 || strings.HasPrefix(dir.Name(), "run_") {
			t.Errorf("left behind: %s %v (%v)", dir.Name(), pins, err)
		}
	}
}
