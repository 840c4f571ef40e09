// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Runner is a *testing.M, or the demo.
type Runner interface{ Run() int }

// Main runs r and exits with its code. As root it does so in a child process with
// a network namespace of its own, and exits with 1 if r leaves anything behind,
// even if it crashed or was killed; see residue.go for what is compared. Without
// root it just runs r, whose privileged tests then skip themselves by Require.
//
// A process started by Func's Command runs that function instead.
func Main(r Runner) {
	os.Exit(run(r))
}

func run(r Runner) int {
	if name, ok := os.LookupEnv(funcEnv); ok {
		return callFunc(name)
	}
	if os.Geteuid() != 0 {
		return r.Run()
	}
	if os.Getenv(suiteEnv) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "testenv:", err)
			return 1
		}
		return r.Run()
	}
	code, err := supervise()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		return 1
	}
	return code
}

// supervise runs this program again as the suite proper.
func supervise() (int, error) {
	// The parent-death signal is sent when the thread that started the child
	// exits, so that thread has to stay (prctl(2)).
	runtime.LockOSThread()
	// Processes that the suite loses become children of this one.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become subreaper: %w", err)
	}
	lock, err := lockSuite()
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	before, err := look()
	if err != nil {
		return 0, err
	}

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), suiteEnv+"="+strconv.Itoa(os.Getpid()))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start the suite in a network namespace: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			// go test sends SIGQUIT to this process alone when time is up. After a
			// ^C the child has the signal already, and a second does no harm.
			if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return 0, fmt.Errorf("pass on %s: %w", sig, err)
			}
		case err := <-done:
			return conclude(cmd, err, before)
		}
	}
}

// conclude turns the suite's end and what it left into an exit code.
func conclude(cmd *exec.Cmd, err error, before traces) (int, error) {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("wait for the suite: %w", err)
	}
	code := cmd.ProcessState.ExitCode()
	if code < 0 {
		fmt.Fprintln(os.Stderr, "testenv: the suite ended by", cmd.ProcessState)
		code = 1
	}
	left, err := residue(before)
	if err != nil {
		return 0, err
	}
	for what, remove := range left {
		code = max(code, 1)
		fmt.Fprintln(os.Stderr, "testenv: left behind:", what)
		if remove == nil {
			continue // goes with another, or may be somebody else's
		}
		if err := remove(); err != nil {
			fmt.Fprintf(os.Stderr, "testenv: remove %s: %v\n", what, err)
		}
	}
	return code, nil
}
