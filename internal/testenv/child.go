// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// funcEnv names the function that a process started by Func.Command runs.
const funcEnv = "NETFENCE_TEST_FUNC"

var funcs = map[string]func(args []string) error{}

// Func is a function that can be run as a process of its own.
type Func struct{ name string }

// NewFunc gives f a name under which another process of the same program can run
// it. It has to be called while package variables are initialised:
//
//	var listen = testenv.NewFunc("listen", func(args []string) error { … })
//
// The process exits with 1 and prints the error if f returns one.
func NewFunc(name string, f func(args []string) error) Func {
	if _, taken := funcs[name]; taken {
		panic("testenv: two functions are called " + name)
	}
	funcs[name] = f
	return Func{name}
}

// Command returns a command that runs the function. Start it with Start.
func (f Func) Command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = f.name
	// With the race detector a program waits a second before it exits, unless told otherwise.
	cmd.Env = append(os.Environ(), funcEnv+"="+f.name, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

func callFunc(name string) int {
	if err := os.Unsetenv(funcEnv); err != nil { // or a grandchild would run it too
		fmt.Fprintln(os.Stderr, "testenv:", err)
		return 1
	}
	f, ok := funcs[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "testenv: no function is called %q\n", name)
		return 1
	}
	if err := f(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// Start starts cmd in the network namespace ns and in the cgroup cg, in both from
// its first instruction; either may be nil, which leaves the suite's. The process
// is killed when the test ends, if it still runs, and with the suite. The caller
// may Wait for cmd.
func Start(t TB, cmd *exec.Cmd, ns *NS, cg *Cgroup) {
	t.Helper()
	var err error
	onStarter(func() { err = start(cmd, ns, cg) })
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState != nil {
			return // waited for
		}
		// The process may have ended by itself. Wait says why it did; that it was
		// killed is no news.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// starter is a thread that never ends. A process gets its parent-death signal when
// the thread ends that started it, and threads do end: those that had to change
// their mount namespace, and any thread may come to that.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func onStarter(f func()) {
	done := make(chan struct{})
	starter() <- func() {
		defer close(done)
		f()
	}
	<-done
}

// start is Start on the thread at hand, without a test that ends the process.
func start(cmd *exec.Cmd, ns *NS, cg *Cgroup) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	if cg != nil {
		dir, err := os.Open(cg.Path)
		if err != nil {
			return fmt.Errorf("start %s: %w", cmd, err)
		}
		defer dir.Close()
		// clone3(2) CLONE_INTO_CGROUP.
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(dir.Fd())
	}
	var err error
	begin := func() { err = cmd.Start() }
	if ns != nil {
		ns.Do(begin)
	} else {
		begin()
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd, err)
	}
	return nil
}
