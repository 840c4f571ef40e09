// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NetnsCookie returns the kernel's id of the calling thread's network namespace.
// It is never reused during a boot, unlike the inode number of /proc/self/ns/net.
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("network namespace cookie: getsockopt SO_NETNS_COOKIE: %w", err)
	}
	return cookie, nil
}

// namedNetnsDir is where iproute2 keeps network namespaces by name (ip-netns(8)).
const namedNetnsDir = "/run/netns"

// checkNetns returns nil if ref, a path or a name that ip-netns(8) gave, is the
// network namespace of the calling thread.
func checkNetns(ref, link string) error {
	path := ref
	if !strings.Contains(ref, "/") {
		path = filepath.Join(namedNetnsDir, ref)
	}
	object := "network namespace " + ref

	var theirs, ours unix.Stat_t
	if err := unix.Stat(path, &theirs); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return &NotFoundError{Object: object, Cause: "no such network namespace"}
		}
		return fmt.Errorf("%s: stat: %w", object, err)
	}
	const self = "/proc/thread-self/ns/net"
	if err := unix.Stat(self, &ours); err != nil {
		return fmt.Errorf("%s: stat %s: %w", object, self, err)
	}
	// ioctl_ns(2): device and inode together identify a namespace.
	if theirs.Dev == ours.Dev && theirs.Ino == ours.Ino {
		return nil
	}
	hostEnd, err := hostEnd(path, ref, link)
	if err != nil {
		return err
	}
	return &OtherNetnsError{Name: link, Netns: ref, HostEnd: hostEnd}
}

// hostEnd returns the name that the peer of link, an interface in the network
// namespace at path, has in the namespace of the calling thread. It is empty if
// the peer is elsewhere or link has none.
func hostEnd(path, ref, link string) (string, error) {
	object := "network namespace " + ref
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return "", fmt.Errorf("%s: open: %w", object, err)
	}
	defer ns.Close()
	if kind, err := unix.IoctlRetInt(int(ns), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return "", &InvalidError{Object: object, Cause: "not a network namespace"}
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return "", fmt.Errorf("%s: %w", object, err)
	}
	defer h.Close()

	inner, err := h.LinkByName(link)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return "", &NotFoundError{Object: "interface " + link, Cause: "no such interface in " + object}
	}
	if err != nil {
		return "", fmt.Errorf("interface %s in %s: %w", link, object, err)
	}
	if inner.Attrs().ParentIndex == 0 {
		return "", nil
	}
	// The peer's index alone could be that of any device of ours: ask it back.
	outer, err := netlink.LinkByIndex(inner.Attrs().ParentIndex)
	if err != nil || outer.Type() != inner.Type() || outer.Attrs().ParentIndex != inner.Attrs().Index {
		return "", nil //nolint:nilerr // the name is advice: without it the answer stays the same
	}
	return outer.Attrs().Name, nil
}
