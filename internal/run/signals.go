// SPDX-License-Identifier: Apache-2.0

package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/confine"
)

// kept are signals that are not the command's: the runtime's own, what this process itself may cause, and those that no
// process can catch.
var kept = map[syscall.Signal]bool{
	unix.SIGKILL: true, unix.SIGSTOP: true, unix.SIGCHLD: true, unix.SIGURG: true, unix.SIGPIPE: true, unix.SIGPROF: true,
	unix.SIGSEGV: true, unix.SIGBUS: true, unix.SIGFPE: true, unix.SIGILL: true, unix.SIGTRAP: true, unix.SIGSYS: true,
	unix.SIGTTIN: true, unix.SIGTTOU: true, 32: true, 33: true, // the last two are the C library's
}

// signals are those that this process gets for the command.
type signals struct {
	caught chan syscall.Signal
	raw    chan os.Signal
	done   chan struct{}
}

// catchSignals leaves alone what was ignored when this process began (nohup): the command inherits that.
func catchSignals() *signals {
	s := &signals{caught: make(chan syscall.Signal), raw: make(chan os.Signal, 64), done: make(chan struct{})}
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if !kept[sig] && !signal.Ignored(sig) {
			signal.Notify(s.raw, sig)
		}
	}
	go func() {
		for {
			select {
			case sig := <-s.raw:
				select {
				case s.caught <- sig.(syscall.Signal):
				case <-s.done:
					return
				}
			case <-s.done:
				return
			}
		}
	}()
	return s
}

// stop has signals end this process again.
func (s *signals) stop() {
	signal.Stop(s.raw)
	close(s.done)
}

// fatal tells whether a signal ends a process that does nothing about it (signal(7)).
func fatal(sig syscall.Signal) bool {
	switch sig {
	case unix.SIGCONT, unix.SIGWINCH, unix.SIGTSTP:
		return false
	}
	return true
}

// terminal is the controlling terminal. The zero value, and nil, is none.
type terminal struct {
	file  *os.File
	given bool // to the command
}

// openTerminal returns nil if there is none.
func openTerminal() (*terminal, error) {
	file, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EIO):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return &terminal{file: file}, nil
}

// ours tells whether this process is in the foreground.
func (t *terminal) ours() bool {
	if t == nil {
		return false
	}
	group, err := unix.IoctlGetInt(int(t.file.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func (t *terminal) give(group int) error {
	if err := confine.Foreground(t.file, group); err != nil {
		return fmt.Errorf("give the terminal to the command: %w", err)
	}
	t.given = true
	return nil
}

func (t *terminal) takeBack() error {
	if t == nil || !t.given {
		return nil
	}
	t.given = false
	err := confine.Foreground(t.file, unix.Getpgrp())
	if err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOTTY) { // it hung up
		return fmt.Errorf("take the terminal back: %w", err)
	}
	return nil
}

// suspend follows a command that the terminal has stopped, so that the shell sees it, and returns when the shell has
// continued us.
func (s *session) suspend() error {
	if s.terminal == nil {
		return nil // whoever stopped the command continues it
	}
	if err := s.terminal.takeBack(); err != nil {
		return err
	}
	if err := stopOwnGroup(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if s.terminal.ours() {
		if err := s.terminal.give(s.process.Group()); err != nil {
			return err
		}
	}
	return s.process.Signal(unix.SIGCONT)
}

// stopOwnGroup returns after SIGCONT, or at once where nobody could send it: the kernel does not stop a group that no
// shell watches.
func stopOwnGroup() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, standard sigaction
	ignore := sigaction{1} // SIG_IGN
	// The others of the group (a pipeline, sudo), and then this thread, which stops us before the call returns: a signal
	// to the process may be taken by another thread, any time.
	err := setAction(unix.SIGTSTP, &ignore, &before)
	if err != nil {
		return err
	}
	if err = unix.Kill(0, unix.SIGTSTP); err == nil {
		// signal.Reset would leave the runtime's handler, which does nothing.
		err = setAction(unix.SIGTSTP, &standard, nil)
	}
	if err == nil {
		err = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGTSTP)
	}
	return errors.Join(err, setAction(unix.SIGTSTP, &before, nil))
}

// sigaction has room for the kernel's structure, which on every 64-bit architecture but MIPS begins with the handler.
// Zero is SIG_DFL.
type sigaction [8]uint64

func setAction(sig syscall.Signal, action, before *sigaction) error {
	const maskSize = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(action)), uintptr(unsafe.Pointer(before)), maskSize, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
