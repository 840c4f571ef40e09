// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// connectAs connects to the socket as another user, and tells what a server that writes "hello" has to say.
func connectAs(path string, uid, gid int, groups ...uint32) (string, error) {
	type result struct {
		text string
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, and its credentials with it
		text, err := func() (string, error) {
			groups = append(groups, uint32(gid))
			for _, call := range [][4]uintptr{
				{unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0},
				{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
				{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
			} {
				if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
					return "", errno
				}
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			f := os.NewFile(uintptr(fd), path)
			defer f.Close()
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				return "", err
			}
			text, err := io.ReadAll(f)
			return string(text), err
		}()
		done <- result{text, err}
	}()
	r := <-done
	return r.text, r.err
}

// greet answers everybody whom the listener lets in.
func greet(t *testing.T, l net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, err = conn.Write([]byte("hello"))
			if err := errors.Join(err, conn.Close()); err != nil {
				t.Error(err)
			}
		}
	}()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
}

// Who may use the socket is asked of the kernel, and does not stand and fall with the mode of a file.
func TestWhoMayConnect(t *testing.T) {
	testenv.Require(t, testenv.Root)
	const nobody, daemonGroup, otherGroup = 65534, 1, 2
	dir := t.TempDir()
	for parent := dir; parent != os.TempDir(); parent = filepath.Dir(parent) {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, group string
		open        bool // somebody has opened the file to all
		uid, gid    int
		groups      []uint32
		want        string // heard
		err         error
	}{
		{"root", "", false, 0, 0, nil, "hello", nil},
		{"another", "", false, nobody, nobody, nil, "", unix.EACCES},
		{"another, by an open file", "", true, nobody, nobody, nil, "", nil},
		{"of a group, where none is set", "", true, nobody, daemonGroup, nil, "", nil},
		{"root, with a group", "daemon", false, 0, 0, nil, "hello", nil},
		{"of the group", "daemon", false, nobody, daemonGroup, nil, "hello", nil},
		{"of the group, among many", "daemon", false, nobody, nobody, append(many(40), daemonGroup), "hello", nil},
		{"of another group", "daemon", false, nobody, otherGroup, nil, "", unix.EACCES},
		{"of another group, by an open file", "daemon", true, nobody, otherGroup, many(40), "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, "d.sock")
			l, err := Listen(t.Context(), path, tt.group)
			if err != nil {
				t.Fatal(err)
			}
			greet(t, l)
			if tt.open {
				if err := os.Chmod(path, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			got, err := connectAs(path, tt.uid, tt.gid, tt.groups...)
			if errors.Is(err, unix.ECONNRESET) {
				err = nil // closed before it was read from
			}
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("heard %q, %v; want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
	if _, err := Listen(t.Context(), filepath.Join(dir, "e.sock"), "no-such-group"); err == nil || !strings.Contains(err.Error(), "socket_group: group: unknown group no-such-group") {
		t.Error(err)
	}
}

func many(n int) []uint32 {
	groups := make([]uint32, n)
	for i := range groups {
		groups[i] = uint32(1000 + i)
	}
	return groups
}
