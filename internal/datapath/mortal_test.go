// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mortality lets this process change the kernel a number of times, and no more. Every system call by which a datapath
// leaves something behind is stopped by seccomp before it happens, counted, and from the fatal one on refused with EIO,
// that of whatever would clean up too. What is there then is what a kill at that call leaves. Calls that read, and maps,
// programs and links that nobody has pinned, pass: those die with the process.
type mortality struct {
	listener int
	memory   *os.File

	mu    sync.Mutex
	wrote map[[2]uint64]int // how often: command and map
	steps int
	fatal int // the step that does not happen; 0: all do
	errno unix.Errno
	once  bool // those after the fatal one happen
	died  bool
}

// mortalEnv makes the process that runs one test as one that can die.
const mortalEnv = "NETFENCE_TEST_MORTAL"

// inMortalProcess runs the test in a process of its own, as there is no way back from seccomp. It returns nil in the one
// that waits for it.
func inMortalProcess(t *testing.T) *mortality {
	t.Helper()
	if os.Getenv(mortalEnv) != t.Name() {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.timeout=20m", "-test.v")
		cmd.Env = append(os.Environ(), mortalEnv+"="+t.Name())
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		runtime.LockOSThread() // whose end would end the process
		defer runtime.UnlockOSThread()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v:\n%s", err, out)
		} else {
			t.Logf("%s", out)
		}
		return nil
	}
	m, err := newMortality()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Commands of bpf(2) by which something stays.
var lasting = []uint32{
	unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_MAP_UPDATE_BATCH, unix.BPF_OBJ_PIN, unix.BPF_PROG_TEST_RUN,
	unix.BPF_PROG_ATTACH, unix.BPF_PROG_DETACH, unix.BPF_LINK_CREATE, unix.BPF_LINK_UPDATE, unix.BPF_LINK_DETACH,
}

// filter asks the listener about calls that last.
func filter() []unix.SockFilter {
	const (
		number   = 0  // in struct seccomp_data
		argument = 16 // the low half of the first one, where low halves come first
	)
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	ask := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF}
	pass := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	equal := func(value uint32) unix.SockFilter { // else the next but one
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: value}
	}
	f := []unix.SockFilter{load(number)}
	for _, call := range lastingCalls {
		f = append(f, equal(call), ask)
	}
	f = append(f, equal(unix.SYS_BPF), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: 1}, pass, load(argument))
	for _, command := range lasting {
		f = append(f, equal(command), ask)
	}
	return append(f, pass)
}

func newMortality() (*mortality, error) {
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, err
	}
	instructions := filter()
	program := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER |
		waitKillable
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return nil, fmt.Errorf("seccomp: %w", errno)
	}
	m := &mortality{listener: int(fd), memory: memory}
	go m.listen()
	return m, nil
}

// From linux/seccomp.h.
const (
	waitKillable   = 1 << 5 // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19: Go's signals make no second call of one
	notifyReceive  = 0xc0502100
	notifySend     = 0xc0182101
	notifyContinue = 1
)

type notification struct {
	id         uint64
	pid, flags uint32
	nr, arch   uint32
	ip         uint64
	args       [6]uint64
}

type response struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

func (m *mortality) listen() {
	runtime.LockOSThread()
	for {
		var n notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m.listener), notifyReceive, uintptr(unsafe.Pointer(&n))); errno != 0 {
			if errno == unix.EINTR || errno == unix.ENOENT {
				continue
			}
			panic(errno)
		}
		r := response{id: n.id, flags: notifyContinue}
		if errno := m.refuses(&n); errno != 0 {
			r.flags, r.errno = 0, -int32(errno)
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m.listener), notifySend, uintptr(unsafe.Pointer(&r))); errno != 0 && errno != unix.ENOENT {
			panic(errno)
		}
	}
}

// refuses counts a call. Of the writes to one map, such as an attachment's counters, only the first few count.
func (m *mortality) refuses(n *notification) unix.Errno {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fatal == 0 {
		return 0
	}
	at, enough := m.mapOf(n), false
	if at != 0 {
		what := [2]uint64{n.args[0], at}
		m.wrote[what]++
		enough = m.wrote[what] > 4
	}
	if !enough {
		m.steps++
	}
	if enough && m.once || m.steps < m.fatal || m.once && m.died {
		return 0
	}
	m.died = true
	return m.errno
}

// mapOf is the file descriptor that an update or a deletion begins with.
func (m *mortality) mapOf(n *notification) uint64 {
	if n.nr != unix.SYS_BPF || n.args[0] != unix.BPF_MAP_UPDATE_ELEM && n.args[0] != unix.BPF_MAP_DELETE_ELEM {
		return 0
	}
	var fd [4]byte
	if _, err := m.memory.ReadAt(fd[:], int64(n.args[1])); err != nil {
		panic(err)
	}
	return uint64(binary.NativeEndian.Uint32(fd[:]))
}

// until has do live until the fatal step, from 1, and tells whether it got there. What do returns when it did is of no
// interest.
func (m *mortality) until(fatal int, do func() error) (died bool, err error) {
	died, err = m.play(fatal, unix.EIO, false, do)
	if died {
		err = nil
	}
	return died, err
}

// without has do live on while the kernel has no memory for one step, and tells whether it got there and what it returned.
func (m *mortality) without(step int, do func() error) (refused bool, err error) {
	return m.play(step, unix.ENOMEM, true, do)
}

func (m *mortality) play(fatal int, errno unix.Errno, once bool, do func() error) (died bool, err error) {
	m.mu.Lock()
	m.fatal, m.errno, m.once = fatal, errno, once
	m.steps, m.died, m.wrote = 0, false, make(map[[2]uint64]int)
	m.mu.Unlock()
	err = do()
	m.mu.Lock()
	defer m.mu.Unlock()
	died, m.fatal = m.died, 0
	return died, err
}

func TestMortality(t *testing.T) {
	m := inMortalProcess(t)
	if m == nil {
		return
	}
	dir := t.TempDir()
	for fatal := 1; fatal <= 4; fatal++ {
		var errs [3]error
		died, err := m.until(fatal, func() error {
			for i := range errs {
				errs[i] = os.Mkdir(fmt.Sprintf("%s/%d", dir, i), 0o700)
			}
			return nil
		})
		if err != nil || died != (fatal <= 3) {
			t.Errorf("step %d: died %t, %v", fatal, died, err)
		}
		for i, err := range errs {
			if errors.Is(err, unix.EIO) != (i >= fatal-1) {
				t.Errorf("step %d: call %d: %v", fatal, i+1, err)
			}
			_ = os.Remove(fmt.Sprintf("%s/%d", dir, i))
		}
	}
}
