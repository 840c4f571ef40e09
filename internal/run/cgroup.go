// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
)

const cgroupPrefix = "netfence_run_"

// emptyPatience is how long killed processes may take to be gone. One in uninterruptible sleep takes longer.
const emptyPatience = 10 * time.Second

// cgroup is the command's. It is a child of our own: what is attached to that one, or above, holds for the command too.
type cgroup struct {
	path string
	dir  *os.File
}

func cgroupPath(id string) (string, error) {
	parent, err := target.OwnCgroup()
	return filepath.Join(parent, cgroupPrefix+id), err
}

func newCgroup(path string) (*cgroup, error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("cgroup %s: %w%s", path, cause(err), adviceFor(err))
	}
	c := &cgroup{path: path}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return c, nil
}

func adviceFor(err error) string {
	if errors.Is(err, unix.EAGAIN) {
		return " (cgroup.max.descendants or cgroup.max.depth is reached)"
	}
	return ""
}

func (c *cgroup) open() (err error) {
	kind := filepath.Join(c.path, "cgroup.type")
	text, err := os.ReadFile(kind)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", c.path, cause(err))
	}
	// Ours is threaded; so must its children be before a process can be in one (cgroups(7)).
	if strings.TrimSpace(string(text)) == "domain invalid" {
		if err := os.WriteFile(kind, []byte("threaded"), 0); err != nil {
			return fmt.Errorf("cgroup %s: make it threaded: %w", c.path, cause(err))
		}
	}
	if c.dir, err = os.Open(c.path); err != nil {
		return fmt.Errorf("cgroup %s: %w", c.path, cause(err))
	}
	return nil
}

// end kills what is left in the cgroup and returns when it is empty.
func (c *cgroup) end() error {
	defer c.dir.Close()
	return killCgroup(c.path)
}

func (c *cgroup) remove() error { return removeCgroup(c.path) }

// killCgroup is content with a cgroup that is not there.
func killCgroup(path string) error {
	populated, err := isPopulated(path)
	if err != nil || !populated {
		return err
	}
	err = os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
	// A threaded one cannot be killed at once, and need not: its processes ended with their PID namespace.
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("kill cgroup %s: %w", path, cause(err))
	}
	return awaitEmpty(path)
}

func isPopulated(path string) (bool, error) {
	text, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cgroup %s: %w", path, cause(err))
	}
	return !strings.Contains(string(text), "populated 0"), nil
}

// awaitEmpty polls cgroup.events, which the kernel announces changes of.
func awaitEmpty(path string) error {
	file, err := os.Open(filepath.Join(path, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, cause(err))
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(context.Background(), emptyPatience)
	defer cancel()
	for {
		text := make([]byte, 256)
		n, err := unix.Pread(int(file.Fd()), text, 0)
		switch {
		case errors.Is(err, unix.ENODEV), err == nil && strings.Contains(string(text[:n]), "populated 0"):
			return nil
		case err != nil:
			return fmt.Errorf("cgroup %s: %w", path, err)
		case ctx.Err() != nil:
			return fmt.Errorf("cgroup %s: processes are left %s after they were killed", path, emptyPatience)
		}
		poll := []unix.PollFd{{Fd: int32(file.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, 100); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cgroup %s: %w", path, err)
		}
	}
}

// removeCgroup removes the directory and those below it, which uid 0 may have made in a namespace of its own.
func removeCgroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(dir string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, dir)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, cause(err))
	}
	for _, dir := range slices.Backward(dirs) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// cause drops what the standard library says of operation and path; the caller names both.
func cause(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}
