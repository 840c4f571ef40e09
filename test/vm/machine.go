// SPDX-License-Identifier: Apache-2.0

//go:build vm

// Package vm shows what takes another kernel than the one at hand: that Netfence runs on the oldest one that it
// promises, and that it filters a virtual machine. Both are emulated, without KVM, so they are slow, and have a step of
// their own: `make test-vm`.
package vm

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/vm/order"
)

// kernelEnv names a directory with an unpacked kernel package: boot/vmlinuz-* and lib/modules.
const kernelEnv = "NETFENCE_VM_KERNEL"

// bootTime is what a guest gets to come up. Half a minute is usual on two busy cores.
const bootTime = 10 * time.Minute

const commandLine = "console=ttyS0 panic=-1 quiet loglevel=3 reboot=t no_timer_check"

// Machines without a BIOS and PCI, which would take most of the time to start.
const platform = "microvm,acpi=on,pit=on,pic=on,rtc=on"

// clock is how the time of a guest passes.
type clock struct {
	args   []string // of qemu
	kernel string   // command line
}

var (
	// hostTime is for a guest that the host talks to. Without the options, three boots of four hang where emulated
	// timers are calibrated.
	hostTime = clock{[]string{"-accel", "tcg"}, "lpj=4000000 tsc_early_khz=2000000"}
	// ownTime counts the guest's instructions, a billion a second, and skips what it would wait: however busy the host
	// is, time to do something in is time enough, and waiting is free.
	ownTime = clock{[]string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"}, ""}
)

func kernel(t *testing.T) (image string, modules string) {
	t.Helper()
	dir := os.Getenv(kernelEnv)
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("%s=%s: no kernel there (make test-vm fetches one)", kernelEnv, dir)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return images[0], filepath.Join(dir, "lib/modules", release, "kernel")
}

// build builds a package, or its tests, for an archive without libraries.
func build(t *testing.T, pkg string, tests bool) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	args := []string{"build"}
	if tests {
		args = []string{"test", "-c"}
	}
	cmd := exec.Command("go", append(args, "-trimpath", "-ldflags=-s -w", "-o", out, "github.com/netfence/netfence/"+pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// machine is a virtual machine that runs.
type machine struct {
	name  string
	lines chan string // closed at its end
	in    io.Writer
	log   strings.Builder // of lines that were taken
}

// boot starts qemu in the network namespace ns; nil: the suite's. It is killed with the test.
func (m *image) boot(t *testing.T, ns *testenv.NS, c clock, o order.Order, args ...string) *machine {
	t.Helper()
	o.Modules = m.modules
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel unpacks several archives, one behind the other.
	var last archive
	last.file(order.Path, 0o644, text)
	last.end()
	initrd := filepath.Join(t.TempDir(), "initrd")
	f, err := os.Create(initrd)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range [][]byte{m.Bytes(), last.Bytes()} {
		if _, err := f.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	vmlinuz, _ := kernel(t)
	cmd := exec.Command("qemu-system-x86_64", slices.Concat([]string{
		"-M", platform, "-kernel", vmlinuz, "-initrd", initrd, "-append", commandLine + " " + c.kernel,
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio",
	}, c.args, args)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Not StdoutPipe, which Wait closes while there is still something to read.
	stdout, stdoutEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = stdoutEnd, stdoutEnd
	testenv.Start(t, cmd, ns, nil)
	if err := stdoutEnd.Close(); err != nil {
		t.Fatal(err)
	}
	v := &machine{name: t.Name(), lines: make(chan string, 1024), in: stdin}
	go func() {
		defer close(v.lines)
		defer stdout.Close()
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			v.lines <- strings.TrimRight(lines.Text(), "\r")
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // if the test gave up on it
		for range v.lines {
		}
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("console:\n%s", v.log.String())
		}
	})
	return v
}

// await reads until a line begins with one of the words, and returns it whole.
func (v *machine) await(t *testing.T, patience time.Duration, words ...string) string {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case line, ok := <-v.lines:
			if !ok {
				t.Fatalf("the machine ended before it said %q", words)
			}
			if _, said, ok := strings.Cut(line, order.Mark); ok { // the firmware ends without a line's end
				line = order.Mark + said
			}
			v.log.WriteString(line + "\n")
			if strings.HasPrefix(line, order.Broken) {
				t.Fatalf("the machine: %s", line)
			}
			for _, w := range words {
				if strings.HasPrefix(line, w) {
					return line
				}
			}
		case <-limit:
			t.Fatalf("the machine did not say %q within %s", words, patience)
		}
	}
}

// tell gives the guest a line to obey.
func (v *machine) tell(t *testing.T, a order.Ask) {
	t.Helper()
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.in.Write(append(text, '\n')); err != nil {
		t.Fatal(err)
	}
}

// off has the guest power off, and waits for the machine's end.
func (v *machine) off(t *testing.T) {
	t.Helper()
	v.tell(t, order.Ask{Off: true})
	for limit := time.After(testenv.Patience); ; {
		select {
		case _, ok := <-v.lines:
			if !ok {
				return
			}
		case <-limit:
			t.Fatal("the machine does not power off")
		}
	}
}

// ask has the guest send something.
func (v *machine) ask(t *testing.T, a order.Ask) order.Answer {
	t.Helper()
	v.tell(t, a)
	line := v.await(t, 2*testenv.Patience, order.Answered)
	var answer order.Answer
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, order.Answered)), &answer); err != nil {
		t.Fatal(err)
	}
	return answer
}
