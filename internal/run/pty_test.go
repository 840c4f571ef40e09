// SPDX-License-Identifier: Apache-2.0

package run

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// screen is a terminal, and what was printed there.
type screen struct {
	*os.File
	mu   sync.Mutex
	text bytes.Buffer
}

// shell starts an interactive shell on a new terminal, with a function "fenced" that runs script in a fence.
func (b *bench) shell(t *testing.T, script string) *screen {
	t.Helper()
	path := filepath.Join(b.dir, "script")
	if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	cmd := b.command(t, "bash", path)
	order := cmd.Args[1]
	cmd.Args, cmd.Path = []string{"bash", "--norc", "--noprofile", "-i"}, "/bin/bash"
	cmd.Env = append(cmd.Env, "ORDER="+order, "SELF="+b.self(t), "PS1=prompt:", "HISTFILE=")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	testenv.Start(t, cmd, nil, b.cg)
	s := &screen{File: ptmx}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		chunk := make([]byte, 4096)
		for {
			n, err := ptmx.Read(chunk)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.text.Write(chunk[:n])
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		s.typed(t, "exit\nexit\n")
		_ = cmd.Wait()
		ptmx.Close()
		<-ended
	})
	s.typed(t, `unset NETFENCE_TEST_FUNC; fenced() { NETFENCE_TEST_FUNC=runner $SELF "$ORDER"; }`+"\n")
	return s
}

func (s *screen) typed(t *testing.T, text string) {
	t.Helper()
	if _, err := s.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// await waits until text has been printed n times.
func (s *screen) await(t *testing.T, text string, n int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			s.mu.Lock()
			t.Logf("on the screen:\n%s", &s.text)
			s.mu.Unlock()
		}
	}()
	testenv.Eventually(t, text, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return strings.Count(s.text.String(), text) >= n
	})
}

// A key reaches the command once, and the shell is back in the foreground afterwards.
func TestTerminalInterrupt(t *testing.T) {
	b := newBench(t)
	s := b.shell(t, `n=0
trap 'n=$((n+1))' INT
echo ready
while [ $n = 0 ]; do sleep 0.05; done
for i in 1 2 3 4 5; do sleep 0.05; done
echo interrupted $n times`)
	s.typed(t, "fenced\n")
	s.await(t, "ready", 1)
	s.typed(t, "\x03")
	s.await(t, "interrupted 1 times", 1)
	s.typed(t, "echo fore\"\"ground $?\n")
	s.await(t, "foreground 0", 1)
}

// Stopped by a key, seen by the shell, and continued: the command has the terminal again.
func TestTerminalStop(t *testing.T) {
	b := newBench(t)
	s := b.shell(t, "echo ready; read line; echo got $line; exit 7")
	s.typed(t, "fenced\n")
	s.await(t, "ready", 1)
	s.typed(t, "\x1a")
	s.await(t, "Stopped", 1)
	s.typed(t, "echo in be\"\"tween\n")
	s.await(t, "in between", 1)
	s.typed(t, "fg\n")
	s.await(t, "SELF \"$ORDER\"", 3)
	s.typed(t, "on\n")
	s.await(t, "got on", 1)
	s.typed(t, "echo code $?\n")
	s.await(t, "code 7", 1)
}

// The command sees a terminal, its own, and may set its modes.
func TestTerminalIsTheCommands(t *testing.T) {
	b := newBench(t)
	s := b.shell(t, "test -t 0 && test -t 1 && stty -echo && stty echo && echo it is")
	s.typed(t, "fenced\n")
	s.await(t, "it is", 1)
}
