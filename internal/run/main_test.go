// SPDX-License-Identifier: Apache-2.0

package run

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/confine"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
	"github.com/netfence/netfence/test/harness"
)

func TestMain(m *testing.M) {
	if confine.Init() {
		confine.Main()
	}
	harness.Main(m)
}

// order is a run in a process of its own.
type order struct {
	Options
	Socket, RunDir, BPFDir string
	PolicyDir              string
	Guard                  *policy.Guard
}

// runner is what `netfenced run` is but for its flags.
var runner = testenv.NewFunc("runner", func(args []string) error {
	var o order
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return err
	}
	o.Config, o.Stderr = config.Default(), os.Stderr
	o.Config.Socket, o.Config.RunDir, o.Config.BPFDir = o.Socket, o.RunDir, o.BPFDir
	o.Config.Guard = o.Guard
	if o.PolicyDir != "" {
		o.Config.ControlPlane.URL.Dir = o.PolicyDir
	}
	code, err := Run(context.Background(), o.Options)
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
	}
	os.Exit(code)
	return nil
})

// bench is where runs of one test keep what is theirs.
type bench struct {
	order
	dir string          // anybody may read it
	cg  *testenv.Cgroup // the caller's
}

func newBench(t *testing.T) *bench {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	dir := publicDir(t)
	b := &bench{dir: dir, cg: testenv.NewCgroup(t)}
	b.RunDir = filepath.Join(t.TempDir(), "run")
	b.Socket = filepath.Join(dir, "d.sock")
	b.BPFDir = filepath.Join(testenv.BPFFS(t), "netfence")
	b.Environ = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
	t.Cleanup(func() { b.nothingLeft(t) })
	return b
}

// publicDir is one that every user may enter, unlike t.TempDir.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// nothingLeft is asked after every test: no entry, no pins, no cgroup.
func (b *bench) nothingLeft(t *testing.T) {
	for _, pattern := range []string{registry(b.RunDir) + "/*", b.BPFDir, b.cg.Path + "/" + cgroupPrefix + "*"} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	}
}

// sudo has runs happen as sudo would start them for a user.
func (b *bench) sudo(uid string) *bench {
	b.Environ = append(b.Environ, "SUDO_UID="+uid, "SUDO_GID="+uid, "SUDO_USER=somebody", "SUDO_COMMAND=x", "HOME=/root", "USER=root")
	return b
}

func (b *bench) command(t *testing.T, command ...string) *exec.Cmd {
	t.Helper()
	o := b.order
	o.Command = command
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := runner.Command(string(text))
	cmd.Dir = "/"
	return cmd
}

// outcome is how a run ended.
type outcome struct {
	stdout, stderr string
	code           int
}

// run runs a command to its end.
func (b *bench) run(t *testing.T, command ...string) outcome {
	t.Helper()
	cmd := b.command(t, command...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	testenv.Start(t, cmd, nil, b.cg)
	return await(t, cmd, &stdout, &stderr)
}

func (b *bench) sh(t *testing.T, script string) outcome {
	t.Helper()
	return b.run(t, "sh", "-c", script)
}

func await(t *testing.T, cmd *exec.Cmd, stdout, stderr fmt.Stringer) outcome {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// live is a run that goes on.
type live struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  chan string // of stdout; closed at its end
	stderr bytes.Buffer
}

// start returns when the command has printed its first line, "ready".
func (b *bench) start(t *testing.T, script string) *live {
	t.Helper()
	l := &live{cmd: b.command(t, "sh", "-c", script), lines: make(chan string, 100)}
	l.cmd.Stderr = &l.stderr
	var err error
	if l.stdin, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	testenv.Start(t, l.cmd, nil, b.cg)
	go func() {
		defer close(l.lines)
		for {
			line, err := readLine(stdout)
			if err != nil {
				return
			}
			l.lines <- line
		}
	}()
	if line := <-l.lines; line != "ready" {
		_ = l.cmd.Wait()
		t.Fatalf("first line %q\n%s", line, &l.stderr)
	}
	return l
}

func readLine(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := r.Read(b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
}

// end waits and returns the exit code, and the lines that nobody has read.
func (l *live) end(t *testing.T) (int, []string) {
	t.Helper()
	var rest []string
	for late := time.After(testenv.Patience); ; {
		select {
		case line, more := <-l.lines:
			if more {
				rest = append(rest, line)
				continue
			}
		case <-late:
			t.Fatalf("it does not end; said %q", rest)
		}
		break
	}
	return await(t, l.cmd, &l.stderr, &l.stderr).code, rest
}

// self is this program where every user may run it, to be a command inside.
func (b *bench) self(t *testing.T) string {
	t.Helper()
	path := filepath.Join(b.dir, "self")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(file, exe); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Chmod(0o755), file.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// call is a shell's words for a test function, run inside.
func (b *bench) call(t *testing.T, function string, args ...string) string {
	t.Helper()
	return "env NETFENCE_TEST_FUNC=" + function + " " + b.self(t) + " " + strings.Join(args, " ")
}

// listen has somebody outside listen, whom no policy here allows. It returns the port, and how often it was reached.
func listen(t *testing.T) (port string, reached func() int) {
	t.Helper()
	l := testenv.Self(t).Listen(t, "tcp", "127.0.0.1:0")
	accepted := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- struct{}{}
			conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, func() int { return len(accepted) }
}
