// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// inert is for mounts that hold nothing to run and no devices.
	inert    = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	readOnly = inert | unix.MS_RDONLY
	nothing  = "mode=0555,size=4k,nr_inodes=1"
)

// arrangeMounts makes the command's view of the files. The mount namespace is this process's own, the cgroup namespace
// its thread's. No mount made here can be undone inside: that takes CAP_SYS_ADMIN, and a user namespace of the
// command's gets these mounts as locked ones (mount_namespaces(7)).
func arrangeMounts(spec *Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	// The last first: a mount that lies on another one, or below it, goes before it.
	for _, m := range slices.Backward(mounts) {
		if err := m.confine(); err != nil {
			return err
		}
	}
	// Where a mount was, a bare directory is left. To remove one that is a mount point elsewhere takes the mount away
	// there (namei.c, vfs_rmdir: detach_mounts), and with the host's bpffs what is pinned in it. What is a mount point
	// here as well is busy.
	for _, m := range mounts {
		if !m.removed() || m.fstype == "cgroup2" || m.point == "/proc" {
			continue
		}
		if err := conceal(m.point); err != nil {
			return err
		}
	}
	if err := mountProc(spec.User.UID == 0); err != nil {
		return err
	}
	// A new mount shows the cgroup namespace's root, which is the fenced cgroup, and nothing above.
	for _, m := range mounts {
		if m.fstype != "cgroup2" {
			continue
		}
		if err := cover("cgroup2", m.point, readOnly, ""); err != nil {
			return err
		}
	}
	if err := hide(spec); err != nil {
		return err
	}
	if spec.User.UID == 0 {
		return privateDev()
	}
	return nil
}

// mountPoint is a line of proc_pid_mountinfo(5).
type mountPoint struct {
	point, fstype string
	flags         uintptr
}

func readMounts() ([]mountPoint, error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	var mounts []mountPoint
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(kind) < 1 {
			return nil, fmt.Errorf("mounts: cannot read %q", line)
		}
		m := mountPoint{point: unescape(fields[4]), fstype: kind[0]}
		for option := range strings.SplitSeq(fields[5], ",") {
			m.flags |= mountFlags[option]
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// mountFlags are options that a remount has to repeat, or it takes them away.
var mountFlags = map[string]uintptr{
	"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
}

func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// removed are those that a command does not see, or sees another of.
func (m mountPoint) removed() bool {
	_, hidden := hiddenTypes[m.fstype]
	return hidden || m.fstype == "cgroup2" || m.fstype == "proc"
}

// confine takes one mount away, or the right to write to it.
func (m mountPoint) confine() error {
	switch {
	case m.removed():
		return m.remove()
	case readOnlyTypes[m.fstype] != "", within(m.point, "/sys"):
		flags := unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | m.flags
		if err := unix.Mount("", m.point, "", flags, ""); err != nil && !gone(err) {
			return fmt.Errorf("make %s read-only: %w", m.point, err)
		}
	}
	return nil
}

// remove takes a mount away. One of an outer container's is locked to what is below it, and is covered.
func (m mountPoint) remove() error {
	err := unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) {
		return conceal(m.point)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("unmount %s: %w", m.point, err)
	}
	return nil
}

// gone says that what a path led to lay on a mount that has been taken away already.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

// cover mounts a file system, and is content if there is nothing to mount it on.
func cover(fstype, on string, flags uintptr, data string) error {
	if err := unix.Mount(fstype, on, fstype, flags, data); err != nil && !gone(err) {
		return fmt.Errorf("mount %s on %s: %w", fstype, on, err)
	}
	return nil
}

func mountProc(root bool) error {
	if err := unix.Mount("proc", "/proc", "proc", inert, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Others are kept out by the modes of the files. A /proc that is whole lets them mount their own in a user
	// namespace, as bwrap and browsers do; uid 0 is not to have a whole one.
	if !root {
		return nil
	}
	for _, name := range procReadOnly {
		path := filepath.Join("/proc", name)
		if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); gone(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("bind %s: %w", path, err)
		}
		if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|readOnly, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	for _, name := range procMasked {
		if err := conceal(filepath.Join("/proc", name)); err != nil {
			return err
		}
	}
	return nil
}

// conceal hides what is at path, if something is.
func conceal(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hide %s: %w", path, err)
	}
	if info.IsDir() {
		return cover("tmpfs", path, readOnly, nothing)
	}
	if err := unix.Mount("/dev/null", path, "", unix.MS_BIND, ""); err != nil && !gone(err) {
		return fmt.Errorf("hide %s: %w", path, err)
	}
	return nil
}

// hide covers what the table, the environment and the caller name.
func hide(spec *Spec) error {
	paths, err := toHide(spec)
	if err != nil {
		return err
	}
	resolver, err := keepResolver(paths)
	if err != nil {
		return err
	}
	runtimeDir := userDirectory(spec.User)
	for _, path := range paths {
		if err := conceal(path); err != nil {
			return err
		}
	}
	if err := resolver.restore(); err != nil {
		return err
	}
	return runtimeDir.restore()
}

// toHide returns real paths, each once, none below another.
func toHide(spec *Spec) ([]string, error) {
	candidates := slices.Clone(spec.Hide)
	for _, h := range hidden {
		if !strings.ContainsAny(h.pattern, "*?[") {
			candidates = append(candidates, h.pattern)
			continue
		}
		matches, err := filepath.Glob(h.pattern)
		if err != nil {
			return nil, fmt.Errorf("hide %s: %w", h.pattern, err)
		}
		candidates = append(candidates, matches...)
	}
	for _, pair := range spec.Env {
		name, value, _ := strings.Cut(pair, "=")
		if slices.Contains(variables, name) {
			candidates = append(candidates, socketIn(value)...)
		}
	}
	if spec.User.UID == 0 {
		others, err := boundSockets(spec.Env)
		if err != nil {
			return nil, err
		}
		candidates = append(candidates, others...)
	}
	var real []string
	for _, candidate := range candidates {
		path, err := filepath.EvalSymlinks(candidate)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		case err != nil && within(candidate, "/tmp"): // a loop that anybody may have made there, to keep others from running
		case err != nil:
			return nil, fmt.Errorf("hide %s: %w", candidate, err)
		case path != "/":
			real = append(real, path)
		}
	}
	slices.Sort(real)
	var paths []string
	for _, path := range real {
		if len(paths) == 0 || !within(path, paths[len(paths)-1]) {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// socketIn finds the path in "unix:///run/x.sock", "unix:path=/tmp/y,guid=…" and "/tmp/tmux-0/default,1,0".
func socketIn(value string) []string {
	start := strings.IndexByte(value, '/')
	if start < 0 {
		return nil
	}
	path, _, _ := strings.Cut(value[start:], ",")
	path, _, _ = strings.Cut(path, ";")
	if info, err := os.Stat(path); err != nil || info.Mode().IsRegular() {
		return nil
	}
	return []string{filepath.Clean(path)}
}

// within is for clean absolute paths.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
