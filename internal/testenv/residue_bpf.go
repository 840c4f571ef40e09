// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// bpfPrefix begins the names of our programs and maps.
const bpfPrefix = "nf_"

// bpfTrace begins the descriptions of what findBPF finds.
const bpfTrace = "BPF "

// findBPF finds our programs and maps. Links have no names, and each holds a
// program.
func findBPF(found traces) error {
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("BPF programs: %w", err)
		}
		id = next
		prog, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return fmt.Errorf("BPF program %d: %w", id, err)
		}
		info, err := prog.Info()
		if err := errors.Join(err, CloseBPF(prog)); err != nil {
			return fmt.Errorf("BPF program %d: %w", id, err)
		}
		if strings.HasPrefix(info.Name, bpfPrefix) {
			found[fmt.Sprintf("%sprogram %d %s", bpfTrace, id, info.Name)] = nil
		}
	}
	for id := ebpf.MapID(0); ; {
		next, err := ebpf.MapGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("BPF maps: %w", err)
		}
		id = next
		m, err := ebpf.NewMapFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("BPF map %d: %w", id, err)
		}
		info, err := m.Info()
		if err := errors.Join(err, CloseBPF(m)); err != nil {
			return fmt.Errorf("BPF map %d: %w", id, err)
		}
		if strings.HasPrefix(info.Name, bpfPrefix) {
			found[fmt.Sprintf("%smap %d %s", bpfTrace, id, info.Name)] = nil
		}
	}
}

var lockPath = filepath.Join(os.TempDir(), "netfence-test.lock")

// suiteLock is held shared while a suite runs, so that one can tell whether it is
// alone.
var suiteLock *os.File

func lockSuite() (*os.File, error) {
	f, err := os.OpenFile(lockPath, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("suite lock: %w", err)
	}
	// An open file description lock (fcntl_locking(2)): one can be looked for without giving up one's own.
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		return nil, errors.Join(fmt.Errorf("suite lock: %w", err), f.Close())
	}
	suiteLock = f
	return f, nil
}

// aloneNow reports whether no other suite runs.
func aloneNow() bool {
	other := unix.Flock_t{Type: unix.F_WRLCK}
	return unix.FcntlFlock(suiteLock.Fd(), unix.F_OFD_GETLK, &other) == nil && other.Type == unix.F_UNLCK
}
