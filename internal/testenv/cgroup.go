// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Cgroup is a cgroup v2 directory. It is removed with the test, after the
// processes in it were killed.
type Cgroup struct {
	Path string
}

// NewCgroup makes a cgroup below the root.
func NewCgroup(t TB) *Cgroup {
	t.Helper()
	root, err := cgroupRoot()
	if err != nil {
		t.Fatalf("new cgroup: %v", err)
	}
	return newCgroup(t, filepath.Join(root, uniqueName()))
}

// Child makes a cgroup in this one.
func (c *Cgroup) Child(t TB, name string) *Cgroup {
	t.Helper()
	return newCgroup(t, filepath.Join(c.Path, name))
}

func newCgroup(t TB, path string) *Cgroup {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatalf("new cgroup: %v", err)
	}
	c := &Cgroup{path}
	t.Cleanup(func() {
		if err := removeCgroup(path); err != nil {
			t.Errorf("%v", err)
		}
	})
	return c
}

// Remove kills what runs in the cgroup and removes it and those below it.
func (c *Cgroup) Remove(t TB) {
	t.Helper()
	if err := removeCgroup(c.Path); err != nil {
		t.Fatalf("%v", err)
	}
}

// removeCgroup is content if the cgroup is gone already.
func removeCgroup(path string) error {
	err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	var below []string
	err = filepath.WalkDir(path, func(dir string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			below = append(below, dir)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for i := len(below) - 1; i >= 0; i-- {
		// A killed process leaves its cgroup when it has exited, not at once.
		if !poll(Patience, func() bool {
			err = unix.Rmdir(below[i])
			return !errors.Is(err, unix.EBUSY)
		}) || err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup %s: %w", below[i], err)
		}
	}
	return nil
}

// cgroupRoot returns where cgroup v2 is mounted. This does not ask package target,
// whose tests depend on this package.
func cgroupRoot() (string, error) {
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return path, nil
		}
	}
	return "", errors.New("cgroup v2 is mounted neither at /sys/fs/cgroup nor at /sys/fs/cgroup/unified")
}

// CgroupV1Mount returns where some cgroup v1 hierarchy is mounted, if there is one.
func CgroupV1Mount() (string, bool) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup" {
			return fields[1], true
		}
	}
	return "", false
}
