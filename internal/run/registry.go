// SPDX-License-Identifier: Apache-2.0

package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/intercept"
)

// traces are what a run leaves if it is killed.
type traces struct {
	Cgroup string `json:"cgroup"`
	Pins   string `json:"pins,omitempty"`
}

// entry is a run's file in the registry, run_dir/run. The lock on it is the run's life: the kernel frees it with the
// process.
type entry struct {
	path string
	file *os.File
	dir  *os.File // locked, shared, as long as there is anything of this run
}

func registry(runDir string) string { return filepath.Join(runDir, "run") }

// enlist makes the entry. It has its lock before it has its name, or a sweep might take it for a dead one.
func enlist(runDir, id string) (*entry, error) {
	dir := registry(runDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("registry of runs %s: %w", dir, cause(err))
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("registry of runs %s: %w", dir, err)
	}
	e := &entry{path: filepath.Join(dir, id), file: os.NewFile(uintptr(fd), dir)}
	if e.dir, err = os.Open(dir); err == nil {
		err = errors.Join(unix.Flock(int(e.dir.Fd()), unix.LOCK_SH), e.publish())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("registry of runs %s: %w", dir, cause(err)), e.file.Close(), e.dir.Close())
	}
	return e, nil
}

func (e *entry) publish() error {
	if err := unix.Flock(int(e.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	self := "/proc/self/fd/" + strconv.Itoa(int(e.file.Fd()))
	return unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, e.path, unix.AT_SYMLINK_FOLLOW)
}

// record is before the pins are made. The cgroup's name is known by the id as well.
func (e *entry) record(t traces) error {
	if err := json.NewEncoder(e.file).Encode(t); err != nil {
		return fmt.Errorf("registry of runs %s: %w", e.path, err)
	}
	return nil
}

// close takes the entry away if the run has left nothing, and the last run the directory that pins were in, unless a
// daemon has its own there.
func (e *entry) close(clean bool, pins string) error {
	var err error
	if clean {
		err = os.Remove(e.path)
	}
	if unix.Flock(int(e.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && pins != "" {
		_ = os.Remove(filepath.Dir(pins)) // or it is not empty
	}
	return errors.Join(err, e.file.Close(), e.dir.Close())
}

// Sweep removes what runs that were killed have left: their cgroups, whose processes the kernel has ended, and their
// pins. A daemon notices the end of a cgroup by itself.
func Sweep(runDir string) error {
	entries, err := os.ReadDir(registry(runDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("registry of runs: %w", err)
	}
	var errs []error
	for _, found := range entries {
		if err := sweep(filepath.Join(registry(runDir), found.Name())); err != nil {
			errs = append(errs, fmt.Errorf("run %s: %w", found.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func sweep(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil // it runs
	}
	if err != nil {
		return err
	}
	var left traces
	info, err := file.Stat()
	if err == nil && info.Size() > 0 { // it was killed before it made anything otherwise
		err = json.NewDecoder(file).Decode(&left)
	}
	if err != nil {
		return err
	}
	if err := left.remove(filepath.Base(path)); err != nil {
		return err
	}
	if err := intercept.Remove(); err != nil {
		return err
	}
	err = os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) { // by a sweep at the same time
		return nil
	}
	return err
}

// remove takes the filter away when nothing is left to be filtered.
func (t traces) remove(id string) error {
	if t.Cgroup != "" {
		if filepath.Base(t.Cgroup) != cgroupPrefix+id {
			return fmt.Errorf("cgroup %s is not its own", t.Cgroup)
		}
		if err := killCgroup(t.Cgroup); err != nil {
			return err
		}
	}
	if t.Pins != "" {
		if !strings.HasSuffix(t.Pins, "/"+pinsName(id)) {
			return fmt.Errorf("pins %s are not its own", t.Pins)
		}
		if err := datapath.RemoveAll(t.Pins); err != nil {
			return err
		}
	}
	if t.Cgroup != "" {
		return removeCgroup(t.Cgroup)
	}
	return nil
}

// pinsName is the directory of a run's own pins, below bpf_dir.
func pinsName(id string) string { return "run_" + id }
