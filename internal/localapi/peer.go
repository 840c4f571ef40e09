// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// access says who may use the socket beside root and the daemon's own user.
type access struct {
	group bool
	gid   int
}

func accessOf(group string) (access, error) {
	g, err := user.LookupGroup(group)
	if err != nil {
		return access{}, err
	}
	gid, err := strconv.Atoi(g.Gid)
	return access{true, gid}, err
}

// checked asks the kernel who connects. The mode of the file says the same, but a file's mode can be changed, and a
// socket can be passed on as a bind mount.
type checked struct {
	net.Listener
	access access
}

// Accept closes connections of others, and goes on.
func (l checked) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.access.permits(conn) == nil {
			return conn, nil
		}
		if err := conn.Close(); err != nil {
			return nil, err
		}
	}
}

var errOther = errors.New("neither root nor of the group")

func (a access) permits(conn net.Conn) error {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var (
		peer   *unix.Ucred
		groups []uint32
	)
	controlErr := raw.Control(func(fd uintptr) {
		if peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil && a.group {
			groups, err = peerGroups(int(fd))
		}
	})
	if err := errors.Join(controlErr, err); err != nil {
		return fmt.Errorf("peer of the socket: %w", err)
	}
	if peer.Uid == 0 || int(peer.Uid) == unix.Geteuid() ||
		a.group && (int(peer.Gid) == a.gid || slices.Contains(groups, uint32(a.gid))) {
		return nil
	}
	return errOther
}

// maxGroups is how many groups a process has at most (NGROUPS_MAX).
const maxGroups = 65536

// peerGroups are the supplementary groups that the peer had when it connected (socket(7), SO_PEERGROUPS).
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(groups) && size/4 <= maxGroups: // it says how many there are
			groups = make([]uint32, size/4)
		default:
			return nil, fmt.Errorf("groups: %w", errno)
		}
	}
}
