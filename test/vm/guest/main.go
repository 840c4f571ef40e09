// SPDX-License-Identifier: Apache-2.0

// Guest is the first and only program of a virtual machine that a test boots. It does
// what its order says, tells of it on the console and powers off.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/test/vm/order"
)

func main() {
	if err := run(); err != nil {
		say(order.Broken, err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		say(order.Broken, err)
	}
}

func say(what string, args ...any) { fmt.Print(what, fmt.Sprintln(args...)) }

func run() error {
	for _, m := range []struct{ dir, kind string }{
		{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/run", "tmpfs"}, {"/tmp", "tmpfs"},
		{"/sys/fs/bpf", "bpf"}, {"/sys/fs/cgroup", "cgroup2"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	text, err := os.ReadFile(order.Path)
	if err != nil {
		return err
	}
	var o order.Order
	if err := json.Unmarshal(text, &o); err != nil {
		return err
	}
	if err := insert(o.Modules); err != nil {
		return err
	}
	if o.Network != nil {
		if err := configure(*o.Network); err != nil {
			return fmt.Errorf("configure eth0: %w", err)
		}
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	say(order.Up, strings.TrimSpace(string(release)))
	for _, s := range o.Steps {
		say(order.Begin, s.Name)
		say(order.End, step(s), s.Name)
	}
	if o.Obey {
		return obey(os.Stdin)
	}
	return nil
}

// insert inserts modules. Some need each other, so that one that fails is tried again
// after the others.
func insert(modules []string) error {
	var failed []string
	var errs []error
	for _, path := range modules {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		if err := errors.Join(err, f.Close()); err != nil && !errors.Is(err, unix.EEXIST) {
			failed = append(failed, path)
			errs = append(errs, fmt.Errorf("insert %s: %w", path, err))
		}
	}
	if len(failed) == len(modules) {
		return errors.Join(errs...)
	}
	return insert(failed)
}

func step(s order.Step) int {
	cmd := exec.Command(s.Command[0], s.Command[1:]...)
	cmd.Env = append([]string{"PATH=/bin", "HOME=/root", "TMPDIR=/tmp"}, s.Env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		say(order.Broken, err)
		return -1
	}
	return cmd.ProcessState.ExitCode()
}

// obey answers an Ask a line.
func obey(in io.Reader) error {
	if err := raw(); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var ask order.Ask
		if err := json.Unmarshal(lines.Bytes(), &ask); err != nil {
			return err
		}
		if ask.Off {
			return nil
		}
		answer, err := send(ask)
		if err != nil {
			answer.Err = err.Error()
		}
		text, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		say(order.Answered, string(text))
	}
	return nil
}

// raw has the console neither echo nor cut lines.
func raw() error {
	t, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	t.Iflag &^= unix.IXON
	return unix.IoctlSetTermios(0, unix.TCSETS, t)
}
