// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// kept is a file below what is hidden that stays.
type kept struct {
	dir, path string
	file      *os.File // O_PATH
}

// keepResolver finds the file that /etc/resolv.conf is a link to, if that will be hidden (systemd-resolved).
func keepResolver(paths []string) (kept, error) {
	path, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return kept{}, nil //nolint:nilerr // then there is nothing to keep
	}
	for _, dir := range paths {
		if !within(path, dir) || path == dir {
			continue
		}
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return kept{}, fmt.Errorf("keep %s: %w", path, err)
		}
		return kept{dir, path, os.NewFile(uintptr(fd), path)}, nil
	}
	return kept{}, nil
}

// restore makes the hidden directory one that holds the file alone.
func (k kept) restore() error {
	if k.file == nil {
		return nil
	}
	defer k.file.Close()
	if err := cover("tmpfs", k.dir, inert, "mode=0755,size=64k,nr_inodes=64"); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(k.path), 0o755); err != nil {
		return fmt.Errorf("keep %s: %w", k.path, err)
	}
	if err := os.WriteFile(k.path, nil, 0o444); err != nil {
		return fmt.Errorf("keep %s: %w", k.path, err)
	}
	if err := bindFile(k.file, k.path, 0); err != nil {
		return fmt.Errorf("keep %s: %w", k.path, err)
	}
	if err := unix.Mount("", k.dir, "", unix.MS_REMOUNT|unix.MS_BIND|readOnly, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", k.dir, err)
	}
	return nil
}

func bindFile(file *os.File, on string, flags uintptr) error {
	return unix.Mount("/proc/thread-self/fd/"+strconv.Itoa(int(file.Fd())), on, "", unix.MS_BIND|flags, "")
}

// ownDirectory is a user's directory below /run/user.
type ownDirectory struct {
	user User
	path string
}

// userDirectory looks whether there is one before /run/user is hidden.
func userDirectory(user User) ownDirectory {
	path := filepath.Join("/run/user", strconv.FormatUint(uint64(user.UID), 10))
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return ownDirectory{}
	}
	return ownDirectory{user, path}
}

// restore makes a new one, empty, for programs that insist on XDG_RUNTIME_DIR.
func (d ownDirectory) restore() error {
	if d.path == "" {
		return nil
	}
	parent := filepath.Dir(d.path)
	if err := cover("tmpfs", parent, inert, "mode=0755,size=4k,nr_inodes=8"); err != nil {
		return err
	}
	if err := os.Mkdir(d.path, 0o700); err != nil {
		return fmt.Errorf("own %s: %w", d.path, err)
	}
	if err := unix.Mount("", parent, "", unix.MS_REMOUNT|unix.MS_BIND|readOnly, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", parent, err)
	}
	return cover("tmpfs", d.path, unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("mode=0700,uid=%d,gid=%d,size=10%%", d.user.UID, d.user.GID))
}

// privateDev replaces /dev by one with rootDevices alone.
func privateDev() error {
	devices := map[string]*os.File{}
	defer func() {
		for _, file := range devices {
			file.Close()
		}
	}()
	for _, pattern := range rootDevices {
		matches, err := filepath.Glob(filepath.Join("/dev", pattern))
		if err != nil {
			return fmt.Errorf("device %s: %w", pattern, err)
		}
		for _, path := range matches {
			fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("device %s: %w", path, err)
			}
			devices[path] = os.NewFile(uintptr(fd), path)
		}
	}
	if err := cover("tmpfs", "/dev", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return err
	}
	for path, file := range devices {
		info, err := file.Stat()
		if err != nil {
			return fmt.Errorf("device %s: %w", path, err)
		}
		if info.IsDir() {
			err = os.Mkdir(path, 0o755)
		} else {
			err = os.WriteFile(path, nil, 0o600)
		}
		if err == nil {
			err = bindFile(file, path, unix.MS_REC)
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", path, err)
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, filepath.Join("/dev", name)); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
	}
	return nil
}
