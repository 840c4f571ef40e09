// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Init tells whether this process was started by Start. A program that calls Start asks before anything else in main,
// and if so calls Main.
func Init() bool { return len(os.Args) == 1 && os.Args[0] == initName }

// Main is the process 1. It does not return.
func Main() {
	// Namespaces and privileges are a thread's, and the command's are those of the thread that starts it.
	runtime.LockOSThread()
	os.Exit(serve())
}

// guardian is the process 1.
type guardian struct {
	notices *json.Encoder
	command int // process id, once started
}

func serve() int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, initName+": not to be started by hand")
		return CodeFailed
	}
	unix.CloseOnExec(controlFD)
	control := os.NewFile(controlFD, "control")
	g := &guardian{notices: json.NewEncoder(control)}
	code, err := g.run(json.NewDecoder(control))
	var known *Error
	switch {
	case err == nil:
		return code
	case !errors.As(err, &known):
		known = &Error{CodeFailed, err.Error()}
	}
	_ = g.notices.Encode(notice{Failure: known}) // nobody is left to tell otherwise
	return known.Code
}

func (g *guardian) run(orders *json.Decoder) (int, error) {
	if err := closeDoors(); err != nil {
		return 0, err
	}
	var spec Spec
	if err := orders.Decode(&spec); err != nil {
		return 0, fmt.Errorf("what to run: %w", err)
	}
	withstand()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return 0, fmt.Errorf("cgroup namespace: %w", err)
	}
	dir := workingDirectory()
	if err := arrangeMounts(&spec); err != nil {
		return 0, err
	}
	if err := enter(dir, spec.User); err != nil {
		return 0, err
	}
	// A process group of its own, of which the command becomes a member: a signal to "the group" stays in here, and one
	// of the terminal reaches the command once.
	if err := unix.Setpgid(0, 0); err != nil {
		return 0, fmt.Errorf("process group: %w", err)
	}
	path, err := lookUp(spec.Args[0], spec.Env, spec.User)
	if err != nil {
		return 0, err
	}
	if err := dropPrivileges(spec.User); err != nil {
		return 0, err
	}
	if err := g.notices.Encode(notice{Ready: true}); err != nil {
		return 0, fmt.Errorf("say ready: %w", err)
	}
	var first order
	if err := orders.Decode(&first); err != nil || !first.Go {
		return 0, errors.New("told to end")
	}
	if spec.Terminal {
		if err := takeTerminal(); err != nil {
			return 0, err
		}
	}
	if g.command, err = begin(path, &spec); err != nil {
		return 0, err
	}
	// Go's fork changes the user of a process that shares our memory, which may undo what closeDoors did.
	if err := undumpable(); err != nil {
		return 0, errors.Join(err, unix.Kill(g.command, unix.SIGKILL))
	}
	if err := keepOnlyKill(); err != nil {
		return 0, errors.Join(err, unix.Kill(g.command, unix.SIGKILL))
	}
	if err := g.notices.Encode(notice{Started: true}); err != nil {
		return 0, fmt.Errorf("say started: %w", err)
	}
	go g.obey(orders)
	return g.reap()
}

// closeDoors keeps the command from this process: out of its memory and its descriptors, even where both have the
// same user, and what Start's caller had inherited out of the command.
func closeDoors() error {
	if err := undumpable(); err != nil {
		return err
	}
	if err := unix.CloseRange(controlFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close inherited files: %w", err)
	}
	return nil
}

func undumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl dumpable: %w", err)
	}
	return nil
}

// withstand has every signal that could end this process do nothing. A handler, unlike SIG_IGN, is not the
// command's; a signal that was ignored from the start (nohup) stays so for the command.
func withstand() {
	none := make(chan os.Signal, 1)
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if !signal.Ignored(sig) && sig != unix.SIGPIPE && sig != unix.SIGURG {
			signal.Notify(none, sig)
		}
	}
}

// takeTerminal puts our group into the foreground.
func takeTerminal() error {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	defer tty.Close()
	if err := Foreground(tty, unix.Getpgrp()); err != nil {
		return fmt.Errorf("take the terminal: %w", err)
	}
	return nil
}

// Foreground gives the terminal to a process group. A caller in the background may do so as well.
func Foreground(tty *os.File, group int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var ttou, before unix.Sigset_t
	ttou.Val[0] = 1 << (uint(unix.SIGTTOU) - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &ttou, &before); err != nil {
		return err
	}
	err := unix.IoctlSetPointerInt(int(tty.Fd()), unix.TIOCSPGRP, group)
	return errors.Join(err, unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil))
}

// begin starts the command with what this thread has left.
func begin(path string, spec *Spec) (int, error) {
	attr := &syscall.ProcAttr{
		Env:   spec.Env,
		Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{
			Uid: spec.User.UID, Gid: spec.User.GID, Groups: spec.User.Groups,
		}},
	}
	pid, err := syscall.ForkExec(path, spec.Args, attr)
	if errors.Is(err, unix.ENOEXEC) { // a script that does not say what of, as execvp(3) has it
		pid, err = syscall.ForkExec("/bin/sh", append([]string{"sh", path}, spec.Args[1:]...), attr)
	}
	if err == nil {
		return pid, nil
	}
	code := CodeNotExecutable
	if errors.Is(err, unix.ENOENT) { // its interpreter, or it went away
		code = CodeNotFound
	}
	return 0, &Error{code, fmt.Sprintf("%s: %v", spec.Args[0], err)}
}

// obey passes signals on until the parent is gone; then nothing is left to do here either.
func (g *guardian) obey(orders *json.Decoder) {
	for {
		var o order
		if err := orders.Decode(&o); err != nil {
			os.Exit(CodeFailed)
		}
		sig := syscall.Signal(o.Signal)
		to := g.command
		if sig == unix.SIGCONT {
			to = 0 // the terminal had stopped all of the group
		}
		_ = unix.Kill(to, sig) // it may just have ended
	}
}

// reap collects the dead until the command is among them, and returns its exit code.
func (g *guardian) reap() (int, error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid != g.command:
		case status.Stopped():
			if err := g.notices.Encode(notice{Stopped: int(status.StopSignal())}); err != nil {
				return 0, fmt.Errorf("say stopped: %w", err)
			}
		case status.Exited():
			return status.ExitStatus(), nil
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		}
	}
}
