// SPDX-License-Identifier: Apache-2.0

package target

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Cgroup2Mount returns where the cgroup v2 hierarchy is mounted: /sys/fs/cgroup,
// or /sys/fs/cgroup/unified on a host that has v1 as well. The error is
// ErrNoCgroup2 if it is not mounted.
func Cgroup2Mount() (string, error) {
	m, err := cgroup2Mount()
	return m.point, err
}

// mount is a mounted cgroup v2 hierarchy. root is the cgroup that is seen at
// point, "/" unless only a part of the hierarchy is mounted.
type mount struct{ point, root string }

// mounts remembers where the hierarchy is mounted. The kernel tells a poll of the table
// when it has changed (proc_pid_mountinfo(5)): to read it takes longer than all else that
// there is to find out about a cgroup.
var mounts struct {
	mu    sync.Mutex
	table *os.File
	found mount // none: to be looked for
}

func cgroup2Mount() (mount, error) {
	mounts.mu.Lock()
	defer mounts.mu.Unlock()
	if mounts.table == nil {
		const path = "/proc/self/mountinfo"
		// Not by os.Open: the runtime would poll it too, and what one poll has been told no other is.
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return mount{}, fmt.Errorf("cgroup v2 mount: %s: %w", path, err)
		}
		mounts.table = os.NewFile(uintptr(fd), path)
	}
	changes := []unix.PollFd{{Fd: int32(mounts.table.Fd()), Events: unix.POLLPRI}}
	if n, err := unix.Poll(changes, 0); err == nil && n == 0 && mounts.found.point != "" {
		return mounts.found, nil
	}
	var err error
	mounts.found, err = findCgroup2(mounts.table)
	return mounts.found, err
}

func findCgroup2(table io.ReadSeeker) (mount, error) {
	if _, err := table.Seek(0, io.SeekStart); err != nil {
		return mount{}, fmt.Errorf("cgroup v2 mount: %w", err)
	}
	mounts, err := parseMounts(table)
	if err != nil {
		return mount{}, fmt.Errorf("cgroup v2 mount: %w", err)
	}
	var best mount
	for _, m := range mounts {
		// A later mount may hide this one.
		if !isFilesystem(m.point, unix.CGROUP2_SUPER_MAGIC) {
			continue
		}
		if best.point == "" || m.root == "/" && best.root != "/" {
			best = m
		}
	}
	if best.point == "" {
		return mount{}, ErrNoCgroup2
	}
	return best, nil
}

// parseMounts returns the cgroup2 mounts of a mountinfo table (proc_pid_mountinfo(5)).
func parseMounts(r io.Reader) ([]mount, error) {
	var mounts []mount
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		fstype, _, _ := strings.Cut(after, " ")
		if ok && len(fields) >= 6 && fstype == "cgroup2" {
			mounts = append(mounts, mount{point: unescape(fields[4]), root: unescape(fields[3])})
		}
	}
	return mounts, lines.Err()
}

// unescape undoes the octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func isFilesystem(path string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == magic //nolint:unconvert // unsigned, with 32 bits, on s390x
}

// ResolveCgroup finds the cgroup v2 directory at path, an absolute path.
//
// The error is a *NotFoundError if there is no such directory, an *InvalidError
// if it is not a cgroup v2 directory below the mount or is the root cgroup, and
// ErrNoCgroup2 if there is no hierarchy at all.
func ResolveCgroup(path string) (Target, error) {
	m, err := cgroup2Mount()
	if err != nil {
		return Target{}, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return m.resolve(path)
}

func (m mount) resolve(path string) (Target, error) {
	object := "cgroup " + path
	where := "cgroup v2 is mounted at " + m.point
	if !filepath.IsAbs(path) {
		return Target{}, &InvalidError{Object: object, Cause: "not an absolute path", Next: where}
	}
	clean, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Target{}, &NotFoundError{Object: object, Cause: "no such cgroup (" + where + ")"}
	}
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err // the path is in the object already
		}
		return Target{}, &InvalidError{Object: object, Cause: err.Error(), Next: where}
	}
	if isFilesystem(clean, unix.CGROUP_SUPER_MAGIC) {
		return Target{}, &InvalidError{Object: object, Cause: "a cgroup v1 directory cannot be filtered", Next: where}
	}
	if !isFilesystem(clean, unix.CGROUP2_SUPER_MAGIC) {
		return Target{}, &InvalidError{Object: object, Cause: "not a cgroup", Next: where}
	}
	if st, err := os.Stat(clean); err != nil || !st.IsDir() {
		return Target{}, &InvalidError{Object: object, Cause: "not a directory", Next: "name the cgroup, not a file in it"}
	}
	rel, err := filepath.Rel(m.point, clean)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return Target{}, &InvalidError{Object: object, Cause: "outside the cgroup v2 mount", Next: where}
	}
	if rel == "." {
		return Target{}, &InvalidError{Object: object, Cause: "the root cgroup holds the whole host and the daemon itself",
			Next: "name a cgroup below it"}
	}
	id, err := cgroupID(clean)
	if errors.Is(err, fs.ErrNotExist) {
		return Target{}, &NotFoundError{Object: object, Cause: "no such cgroup (" + where + ")"}
	}
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", object, err)
	}
	return Target{Type: Cgroup, Name: clean, CgroupID: id, Level: strings.Count(rel, "/") + 1}, nil
}

// cgroupID returns the id that BPF programs know the cgroup at path by. It is the
// directory's inode number where those have 64 bits; the file handle has them all
// everywhere.
func cgroupID(path string) (uint64, error) {
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	if err != nil {
		return 0, fmt.Errorf("cgroup id: name_to_handle_at: %w", err)
	}
	if handle.Size() != 8 {
		return 0, fmt.Errorf("cgroup id: file handle of %d bytes, want 8", handle.Size())
	}
	return binary.NativeEndian.Uint64(handle.Bytes()), nil
}

// CgroupsAround returns the ids of the cgroups that a cgroup is in, the nearest
// first, without the root. They stay what they are for as long as t exists.
func CgroupsAround(t Target) ([]uint64, error) {
	var ids []uint64
	for level, path := t.Level-1, filepath.Dir(t.Name); level > 0; level, path = level-1, filepath.Dir(path) {
		id, err := cgroupID(path)
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", path, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// ResolvePID finds the cgroup v2 directory that the process is in now. The
// process may leave it, the target stays the cgroup. Errors are as for
// ResolveCgroup.
func ResolvePID(pid int) (Target, error) {
	object := fmt.Sprintf("pid %d", pid)
	if pid <= 0 {
		return Target{}, &InvalidError{Object: object, Cause: "not a process id"}
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	// ESRCH: it exited between open and read.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return Target{}, &NotFoundError{Object: object, Cause: "no such process"}
	}
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", object, err)
	}
	m, err := cgroup2Mount()
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", object, err)
	}
	rel, ok := m.relative(string(text))
	if !ok {
		return Target{}, &InvalidError{Object: object, Cause: "its cgroup is outside the cgroup v2 mount at " + m.point}
	}
	if rel == "/" {
		return Target{}, &InvalidError{Object: object, Cause: "is in the root cgroup, which holds the whole host and the daemon itself",
			Next: "start it in a cgroup of its own"}
	}
	t, err := m.resolve(m.point + rel)
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", object, err)
	}
	return t, nil
}

// OwnCgroup returns the path of the cgroup v2 directory that this process is in,
// which may be the root. The error is ErrNoCgroup2 if there is no hierarchy.
func OwnCgroup() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("own cgroup: %w", err)
	}
	m, err := cgroup2Mount()
	if err != nil {
		return "", fmt.Errorf("own cgroup: %w", err)
	}
	rel, ok := m.relative(string(text))
	if !ok {
		return "", &InvalidError{Object: "own cgroup", Cause: "is outside the cgroup v2 mount at " + m.point}
	}
	return filepath.Join(m.point, rel), nil
}

// relative returns the v2 entry of a /proc/PID/cgroup file as a path below the
// mount, beginning with a slash. The file and the mount's root are both seen from
// our cgroup namespace, so that either may begin with "/..".
func (m mount) relative(procCgroup string) (string, bool) {
	for line := range strings.Lines(procCgroup) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if m.root != "/" {
			if path, ok = strings.CutPrefix(path, m.root); !ok || path != "" && path[0] != '/' {
				return "", false
			}
		}
		if path == "" {
			path = "/"
		}
		return path, path != "/.." && !strings.HasPrefix(path, "/../")
	}
	return "", false
}

func currentCgroup(t Target) (Target, error) {
	id, err := cgroupID(t.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return Target{}, &NotFoundError{Object: "cgroup " + t.Name, Cause: "no such cgroup any more"}
	}
	if err != nil {
		return Target{}, fmt.Errorf("cgroup %s: %w", t.Name, err)
	}
	if id != t.CgroupID {
		return Target{}, &NotFoundError{Object: "cgroup " + t.Name, Cause: "was deleted and created again"}
	}
	return t, nil
}
