// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// News is an rtnetlink socket that is told what changes in a network namespace
// (rtnetlink(7)). Only the kernel, and who may make such changes anyway, can send it
// any (netlink_allowed). It is for one reader.
type News struct {
	file *os.File
	raw  syscall.RawConn
	lost bool // and there is more to be read
}

// OpenNews is for the network namespace of the calling thread. groups are bits as of
// sockaddr_nl.nl_groups (netlink(7)).
func OpenNews(groups uint32) (*News, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind to its messages: %w", err), unix.Close(fd))
	}
	n := &News{file: os.NewFile(uintptr(fd), "rtnetlink")}
	if n.raw, err = n.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, n.file.Close())
	}
	return n, nil
}

// Read waits for a message. ENOBUFS says that some were lost before this moment: what
// they would have told is to be looked at now. The error after Close is os.ErrClosed.
//
// The kernel says ENOBUFS for the first that finds no room, and not a word of those
// that it drops from then on until everything is read that there is (net/netlink,
// NETLINK_S_CONGESTED). That is why it is said here when everything is, and not sooner:
// who looks before has seen nothing of what is dropped after.
func (n *News) Read(b []byte) (size int, err error) {
	closed := n.raw.Read(func(fd uintptr) (done bool) {
		for {
			size, err = unix.Read(int(fd), b)
			switch err {
			case unix.ENOBUFS:
				n.lost = true
			case unix.EINTR:
			case unix.EAGAIN:
				if !n.lost {
					return false
				}
				n.lost, err = false, unix.ENOBUFS
				return true
			default:
				return true
			}
		}
	})
	if closed != nil {
		return 0, os.ErrClosed
	}
	return max(size, 0), err
}

// Write sends a request.
func (n *News) Write(b []byte) (int, error) { return n.file.Write(b) }

// Close ends a Read in progress.
func (n *News) Close() error { return n.file.Close() }
