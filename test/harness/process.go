// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// process is one run of the daemon.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it ended and err stands
	err  error
}

// Start starts the daemon and returns when it is ready, by its own word (sd_notify(3)).
func (d *Daemon) Start(t testenv.TB) {
	t.Helper()
	if err := d.TryStart(t); err != nil {
		t.Fatalf("%v\n%s", err, d.Log())
	}
}

// TryStart is Start for a daemon that may refuse. What it said is the end of Log.
func (d *Daemon) TryStart(t testenv.TB) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ready")
	notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatalf("start netfenced: %v", err)
	}
	cmd := d.Command("start", "--config", d.Config)
	if len(d.Under) > 0 {
		env := cmd.Env
		cmd = exec.Command(d.Under[0], slices.Concat(d.Under[1:], cmd.Args)...)
		cmd.Env = env
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	cmd.Stderr = &d.log
	testenv.Start(t, cmd, d.NS, nil)
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		_ = notified.Close() // ends awaitReady
		close(p.done)
	}()
	d.process = p
	t.Cleanup(func() { p.kill() })
	if err := awaitReady(notified); err != nil {
		p.kill()
		return fmt.Errorf("netfenced start: %v, %v", p.err, err)
	}
	return nil
}

func awaitReady(notified *net.UnixConn) error {
	if err := notified.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		return err
	}
	message := make([]byte, 512)
	for {
		n, err := notified.Read(message)
		if err != nil {
			return err
		}
		if strings.HasPrefix(string(message[:n]), "READY=1") {
			return nil
		}
	}
}

// kill is content with a process that has ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Kill ends the daemon as the kernel would when memory runs out: by SIGKILL, in the midst of whatever it does.
func (d *Daemon) Kill(t testenv.TB) {
	t.Helper()
	select {
	case <-d.process.done:
		t.Fatalf("kill netfenced: it has ended by itself: %v\n%s", d.process.err, d.Log())
	default:
		d.process.kill()
	}
}

// Stop ends the daemon as a service manager does, and fails the test if it does not end well.
func (d *Daemon) Stop(t testenv.TB) {
	t.Helper()
	if err := d.process.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatalf("stop netfenced: %v\n%s", err, d.Log())
	}
	select {
	case <-d.process.done:
	case <-time.After(testenv.Patience):
		t.Fatalf("stop netfenced: still there after %s", testenv.Patience)
	}
	if d.process.err != nil {
		t.Errorf("stop netfenced: %v\n%s", d.process.err, d.Log())
	}
}

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.process.cmd.Process.Pid }

// log collects what is written to it.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
