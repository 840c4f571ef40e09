// SPDX-License-Identifier: Apache-2.0

package target

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func openInotify() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// watchParent asks inotify for removals from the cgroup's parent. After an error
// e stays blind, and only the sweep finds out. mu is held.
func (w *Watcher) watchParent(e *watched) error {
	dir := filepath.Dir(e.target.Name)
	var wd int
	var err error
	control(w.inotify, func(fd int) {
		// The same directory gives the same descriptor, and a directory that was
		// created again another one.
		wd, err = unix.InotifyAddWatch(fd, dir, unix.IN_DELETE|unix.IN_ONLYDIR)
	})
	if errors.Is(err, unix.ENOENT) || wd <= 0 && err == nil {
		return nil // its first look will tell that it is gone; or the Watcher is closed
	}
	if err != nil {
		return fmt.Errorf("inotify watch on %s: %w", dir, err)
	}
	e.wd = int32(wd)
	p := w.parents[e.wd]
	if p == nil {
		p = &parent{path: dir}
		w.parents[e.wd] = p
	}
	p.n++
	return nil
}

// unwatchParent drops the watch that no other cgroup needs. The kernel keeps one
// on a cgroup that is removed, and its inode with it, so this is not left to it.
// mu is held.
func (w *Watcher) unwatchParent(e *watched) {
	p := w.parents[e.wd]
	if p == nil {
		return
	}
	if p.n--; p.n > 0 {
		return
	}
	delete(w.parents, e.wd)
	control(w.inotify, func(fd int) {
		if _, err := unix.InotifyRmWatch(fd, uint32(e.wd)); err != nil {
			w.log.Warn("inotify watch could not be removed", "directory", p.path, "err", err)
		}
	})
}

// control runs f on f's descriptor unless the file is closed.
func control(file *os.File, f func(fd int)) {
	conn, err := file.SyscallConn()
	if err != nil {
		return // closed
	}
	_ = conn.Control(func(fd uintptr) { f(int(fd)) }) // fails only on a closed file
}

// readCgroups handles removals of directories until inotify is closed.
func (w *Watcher) readCgroups() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := w.inotify.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch cgroups: read: %w", err)
		}
		w.cgroupMessages(buf[:n])
	}
}

func (w *Watcher) cgroupMessages(buf []byte) {
	for len(buf) >= unix.SizeofInotifyEvent {
		// struct inotify_event (inotify(7)): wd, mask, cookie, length of the padded
		// name that follows. The kernel returns whole events only.
		wd := int32(binary.NativeEndian.Uint32(buf[0:]))
		mask := binary.NativeEndian.Uint32(buf[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		name, _, _ := bytes.Cut(buf[unix.SizeofInotifyEvent:end], []byte{0})
		buf = buf[end:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			w.messagesLost()
			continue
		}
		w.directoryRemoved(wd, string(name))
	}
}

// directoryRemoved has the cgroup of that path looked at: by now another one may
// stand in its place.
func (w *Watcher) directoryRemoved(wd int32, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.parents[wd]
	if p == nil {
		return // of a watch that was dropped
	}
	if k, ok := w.paths[filepath.Join(p.path, name)]; ok {
		w.doubtful[k] = true
		w.signal()
	}
}
