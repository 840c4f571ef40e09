// SPDX-License-Identifier: Apache-2.0

package run

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

func TestSignalsArePassedOn(t *testing.T) {
	b := newBench(t)
	for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH} {
		name := strings.TrimPrefix(unix.SignalName(sig), "SIG")
		t.Run(name, func(t *testing.T) {
			l := b.start(t, "trap 'echo got; exit 42' "+name+"; echo ready; while :; do sleep 0.01; done")
			if err := l.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if code, rest := l.end(t); code != 42 || !slices.Equal(rest, []string{"got"}) {
				t.Errorf("exit code %d, said %q", code, rest)
			}
		})
	}
	t.Run("fatal", func(t *testing.T) {
		l := b.start(t, "echo ready; exec sleep 1000")
		if err := l.cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code, _ := l.end(t); code != 143 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("stop and continue", func(t *testing.T) {
		l := b.start(t, "echo ready; read line; echo $line")
		if err := l.cmd.Process.Signal(unix.SIGTSTP); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "the command is stopped", func() bool { return b.anyStopped(t) })
		if err := l.cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if _, err := l.stdin.Write([]byte("on\n")); err != nil {
			t.Fatal(err)
		}
		if code, rest := l.end(t); code != 0 || !slices.Equal(rest, []string{"on"}) {
			t.Errorf("exit code %d, said %q", code, rest)
		}
	})
}

// anyStopped tells whether a process of a run is.
func (b *bench) anyStopped(t *testing.T) bool {
	t.Helper()
	all, err := filepath.Glob(b.cg.Path + "/" + cgroupPrefix + "*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	for _, procs := range all {
		pids, err := os.ReadFile(procs)
		if err != nil {
			t.Fatal(err)
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat") // it may have ended
			if _, state, ok := strings.Cut(string(stat), ") "); ok && strings.HasPrefix(state, "T") {
				return true
			}
		}
	}
	return false
}

// "kill 0" is for the command's own.
func TestAGroupSignalStaysInside(t *testing.T) {
	b := newBench(t)
	if got := b.sh(t, "trap : TERM; kill -TERM 0; exit 5"); got.code != 5 {
		t.Errorf("got %+v", got)
	}
}

// stopsGrowing fails if somebody still writes.
func stopsGrowing(t *testing.T, path string) {
	t.Helper()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.NewTimer(200 * time.Millisecond)
	defer deadline.Stop()
	<-deadline.C
	if after, err := os.Stat(path); err != nil || after.Size() != before.Size() {
		t.Errorf("somebody still writes: %v, %v", after, err)
	}
}

func TestWhatIsLeftIsKilled(t *testing.T) {
	b := newBench(t)
	file := filepath.Join(b.dir, "f")
	if got := b.sh(t, "F="+file+"; "+lingering+"exit 6"); got.code != 6 {
		t.Errorf("got %+v", got)
	}
	stopsGrowing(t, file)
}

func TestKilled(t *testing.T) {
	b := newBench(t)
	file := filepath.Join(b.dir, "f")
	l := b.start(t, "F="+file+"; "+lingering+"echo ready; exec sleep 1000")
	if err := l.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if code, _ := l.end(t); code != -1 {
		t.Errorf("exit code %d", code)
	}
	paths, err := filepath.Glob(b.cg.Path + "/" + cgroupPrefix + "*")
	if err != nil || len(paths) != 1 {
		t.Fatalf("cgroups: %q, %v", paths, err)
	}
	testenv.Eventually(t, "the cgroup is empty", func() bool {
		populated, err := isPopulated(paths[0])
		return err == nil && !populated
	})
	stopsGrowing(t, file)
	// Until somebody sweeps, what there is filters nobody. The next run is somebody.
	if links, err := filepath.Glob(b.BPFDir + "/run_*/v3/links/*/verdict"); err != nil || len(links) != 1 {
		t.Errorf("pins: %q, %v", links, err)
	}
	if got := b.run(t, "true"); got.code != 0 || got.stderr != "" {
		t.Errorf("the next run: %+v", got)
	}
}

// A sweep leaves those alone that run.
func TestTwoAtOnce(t *testing.T) {
	b := newBench(t)
	first := b.start(t, "echo ready; read line; echo $line")
	if got := b.run(t, "true"); got.code != 0 {
		t.Errorf("the second: %+v", got)
	}
	if err := Sweep(b.RunDir); err != nil {
		t.Error(err)
	}
	port, reached := listen(t)
	third := b.start(t, "echo ready; "+b.call(t, "dial", "127.0.0.1:"+port))
	if code, _ := third.end(t); code == 0 || reached() != 0 {
		t.Errorf("the third: exit code %d", code)
	}
	if _, err := first.stdin.Write([]byte("on\n")); err != nil {
		t.Fatal(err)
	}
	if code, rest := first.end(t); code != 0 || !slices.Equal(rest, []string{"on"}) {
		t.Errorf("the first: exit code %d, said %q", code, rest)
	}
}

// The command's cgroup is below the caller's, so that what holds there holds for the command too.
func TestBelowTheCallersCgroup(t *testing.T) {
	b := newBench(t)
	l := b.start(t, "echo ready; cat /proc/self/cgroup; read line")
	inside, err := filepath.Glob(b.cg.Path + "/" + cgroupPrefix + "*/cgroup.procs")
	if err != nil || len(inside) != 1 {
		t.Fatalf("cgroups below %s: %q, %v", b.cg.Path, inside, err)
	}
	if text, err := os.ReadFile(inside[0]); err != nil || len(text) == 0 {
		t.Errorf("nobody is in %s: %v", inside[0], err)
	}
	if err := l.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	_, rest := l.end(t)
	if !slices.Contains(rest, "0::/") {
		t.Errorf("the command sees %q", rest)
	}
	if left, err := filepath.Glob(b.cg.Path + "/" + cgroupPrefix + "*"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestBelowAThreadedCgroup(t *testing.T) {
	b := newBench(t)
	inner := &testenv.Cgroup{Path: filepath.Join(b.cg.Path, "threaded")}
	if err := os.Mkdir(inner.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(inner.Path); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(inner.Path, "cgroup.type"), []byte("threaded"), 0); err != nil {
		t.Fatal(err)
	}
	b.cg = inner
	if got := b.run(t, "sh", "-c", "exit 4"); got.code != 4 {
		t.Errorf("got %+v", got)
	}
}

// ignored are the signals that this process ignores, as every child of it does.
func ignored(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(status), "\nSigIgn:")
	if !ok {
		t.Fatal("no SigIgn")
	}
	set, _, _ := strings.Cut(after, "\n")
	return strings.TrimSpace(set)
}

// What somebody takes away from the fence comes back, and is told of.
func TestTakenAwayIsPutBack(t *testing.T) {
	b := newBench(t)
	b.Report = filepath.Join(b.dir, "report")
	l := b.start(t, "echo ready; read line; echo $line")
	held := func() []string {
		pins, err := filepath.Glob(b.BPFDir + "/run_*/v3/links/*/verdict")
		if err != nil {
			t.Fatal(err)
		}
		return pins
	}
	if len(held()) != 1 {
		t.Fatalf("pins: %q", held())
	}
	detachPin(t, held()[0])
	testenv.Eventually(t, "the filter is back", func() bool {
		for _, pin := range held() {
			if attached(t, pin) {
				return true
			}
		}
		return false
	})
	if _, err := l.stdin.Write([]byte("on\n")); err != nil {
		t.Fatal(err)
	}
	if code, rest := l.end(t); code != 0 || !slices.Equal(rest, []string{"on"}) {
		t.Errorf("exit code %d, said %q", code, rest)
	}
	var report Result
	if text, err := os.ReadFile(b.Report); err != nil {
		t.Error(err)
	} else if err := json.Unmarshal(text, &report); err != nil {
		t.Error(err)
	}
	if len(report.Incidents) != 1 || !strings.HasPrefix(report.Incidents[0], "links_lost: ") {
		t.Errorf("incidents %q", report.Incidents)
	}
}

func detachPin(t *testing.T, path string) {
	t.Helper()
	pinned, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pinned.Detach(), testenv.CloseBPF(pinned)); err != nil {
		t.Fatal(err)
	}
}

// attached tells whether the link at path has a cgroup; it may be gone by now.
func attached(t *testing.T, path string) bool {
	t.Helper()
	pinned, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	info, err := pinned.Info()
	if err := errors.Join(err, testenv.CloseBPF(pinned)); err != nil {
		t.Fatal(err)
	}
	return info.Cgroup() != nil && info.Cgroup().CgroupId != 0
}
