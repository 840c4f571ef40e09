// SPDX-License-Identifier: Apache-2.0

// Package confine runs a command where it cannot leave its cgroup: in a PID, IPC, mount and cgroup namespace of its own,
// without privileges, and without the sockets of those who would send in its place.
//
// Start runs this program once more, as process 1 of the new PID namespace. That process prepares the namespaces while
// its parent prepares the filter, starts the command when it is told to, passes signals on, reaps, and ends as the
// command did. When it ends, or its parent does, for whatever reason, the kernel ends every process of the namespace.
//
// The two talk over a socket: orders go in, notices come out.
package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// initName is argv[0] of the process 1. Nothing else is called so, and a stranger that is has no socket at controlFD.
const initName = "netfenced: init of a fenced command"

// controlFD is the socket in the process 1.
const controlFD = 3

// Exit codes for what is not the command's own, as env(1) and shells have them.
const (
	CodeFailed        = 125 // the command was not started, for a reason of ours
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

// User is whose rights a command has.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Spec is a command and what it gets.
type Spec struct {
	Args []string // the command first, which is looked up in the PATH of Env
	Env  []string
	User User
	// Hide are paths that the command does not see, in addition to those that no command sees.
	Hide []string
	// Terminal gives the command the terminal, which the caller has.
	Terminal bool
}

// Error is why a command was not started.
type Error struct {
	Code int // CodeFailed, CodeNotExecutable or CodeNotFound
	Text string
}

func (e *Error) Error() string { return e.Text }

// order is what the process 1 is told after the Spec.
type order struct {
	Go     bool `json:",omitempty"` // start the command
	Signal int  `json:",omitempty"` // pass this on
}

// notice is what it says.
type notice struct {
	Ready   bool   `json:",omitempty"` // nothing is missing but Go
	Started bool   `json:",omitempty"`
	Stopped int    `json:",omitempty"` // the command was, by this signal
	Failure *Error `json:",omitempty"`
}

// Process is a command from Start on.
type Process struct {
	process *os.Process
	control *os.File
	orders  *json.Encoder

	ready, started chan error
	stopped        chan syscall.Signal
	ended          chan struct{} // closed when status stands
	status         syscall.WaitStatus
	err            error
}

// Start starts the process 1 inside the cgroup that cgroup is an open directory of, with this process's standard
// files. The caller then waits for Ready, and says Go or Kill, and in any case Wait.
func Start(cgroup *os.File, spec Spec) (*Process, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket to the command's namespace: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	p := &Process{
		control: ours, orders: json.NewEncoder(ours),
		ready: make(chan error, 1), started: make(chan error, 1),
		stopped: make(chan syscall.Signal, 1), ended: make(chan struct{}),
	}
	begun := make(chan error)
	go p.parent(cgroup, theirs, begun)
	if err := <-begun; err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the command's namespace: %w", err)
	}
	go p.listen()
	if err := p.orders.Encode(spec); err != nil {
		p.Kill()
		_, _ = p.Wait()
		return nil, fmt.Errorf("socket to the command's namespace: %w", err)
	}
	return p, nil
}

// parent starts and reaps the process 1. It gets the death signal when the thread that started it ends (prctl(2)), so
// this goroutine keeps its thread.
func (p *Process) parent(cgroup, control *os.File, begun chan<- error) {
	runtime.LockOSThread()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{initName}, Env: initEnv(),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{control},
		SysProcAttr: &syscall.SysProcAttr{
			// Of IPC as well: the shared memory of somebody outside is a way to have him send.
			Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
			UseCgroupFD: true, CgroupFD: int(cgroup.Fd()),
			Pdeathsig: unix.SIGKILL,
		},
	}
	if err := cmd.Start(); err != nil {
		begun <- err
		return
	}
	p.process = cmd.Process
	begun <- nil
	err := cmd.Wait()
	if state := cmd.ProcessState; state != nil {
		p.status = state.Sys().(syscall.WaitStatus)
	} else {
		p.err = err
	}
	close(p.ended)
}

// initEnv is the environment of the process 1: nothing but what the race detector is told.
func initEnv() []string {
	env := []string{}
	for _, pair := range os.Environ() {
		if strings.HasPrefix(pair, "GORACE=") {
			env = append(env, pair)
		}
	}
	return env
}

// listen sorts notices until the process 1 has ended.
func (p *Process) listen() {
	notices := json.NewDecoder(p.control)
	for {
		var n notice
		if err := notices.Decode(&n); err != nil {
			lost := error(&Error{CodeFailed, "the command's namespace was ended before the command began"})
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				lost = fmt.Errorf("socket to the command's namespace: %w", err)
			}
			offer(p.ready, lost)
			offer(p.started, lost)
			return
		}
		switch {
		case n.Failure != nil:
			offer(p.ready, error(n.Failure))
			offer(p.started, error(n.Failure))
		case n.Ready:
			offer(p.ready, nil)
		case n.Started:
			offer(p.started, nil)
		case n.Stopped != 0:
			offer(p.stopped, syscall.Signal(n.Stopped))
		}
	}
}

// offer drops v if nobody has taken the one before.
func offer[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}

// Ready yields nil when only Go is missing, or an error, once.
func (p *Process) Ready() <-chan error { return p.ready }

// Started yields nil when the command runs, or why it does not, once.
func (p *Process) Started() <-chan error { return p.started }

// Stopped yields the signals that stop the command.
func (p *Process) Stopped() <-chan syscall.Signal { return p.stopped }

// Ended is closed when the command, and all that it left, has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Go starts the command.
func (p *Process) Go() error { return p.tell(order{Go: true}) }

// Signal passes a signal to the command; SIGCONT to all of its process group.
func (p *Process) Signal(sig syscall.Signal) error { return p.tell(order{Signal: int(sig)}) }

func (p *Process) tell(o order) error {
	err := p.orders.Encode(o)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) { // it has ended; Ended says so
		return nil
	}
	return err
}

// Kill ends the process 1, and with it every process of the namespace.
func (p *Process) Kill() {
	_ = p.process.Kill() // that it has ended meanwhile is what was asked for
}

// Group is the process group of the command, as seen from here.
func (p *Process) Group() int { return p.process.Pid }

// Wait returns the exit code of the command, 128 and the signal's number if a signal ended it, when all processes of
// the namespace have ended.
func (p *Process) Wait() (int, error) {
	<-p.ended
	_ = p.control.Close() // ends listen
	switch {
	case p.err != nil:
		return CodeFailed, fmt.Errorf("wait for the command: %w", p.err)
	case p.status.Signaled():
		return 128 + int(p.status.Signal()), nil
	}
	return p.status.ExitStatus(), nil
}
