// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"fmt"
)

// ErrNoCgroup2 says that this host has no cgroup v2 hierarchy to filter in.
var ErrNoCgroup2 = errors.New("cgroup v2 is not mounted (mount -t cgroup2 none /sys/fs/cgroup)")

// NotFoundError says that there is no such interface, cgroup or process, or that
// the one which was there is gone.
type NotFoundError struct {
	Object string // "interface veth0", "cgroup /sys/fs/cgroup/job-7", "pid 812"
	Cause  string
}

func (e *NotFoundError) Error() string { return e.Object + ": " + e.Cause }

// InvalidError says that the object named cannot be a target, or not without
// more being said about it.
type InvalidError struct {
	Object string
	Cause  string
	Next   string // what to do instead, may be empty
}

func (e *InvalidError) Error() string {
	if e.Next == "" {
		return e.Object + ": " + e.Cause
	}
	return fmt.Sprintf("%s: %s (%s)", e.Object, e.Cause, e.Next)
}

// OtherNetnsError says that the interface named is in another network namespace
// than the daemon's, where its filter could be undone by whoever owns that
// namespace.
type OtherNetnsError struct {
	Name    string // of the interface
	Netns   string // as it was given
	HostEnd string // the peer's name in the daemon's namespace, if it has one
}

func (e *OtherNetnsError) Error() string {
	next := "attach its host-side end"
	if e.HostEnd != "" {
		next += " " + e.HostEnd
	}
	return fmt.Sprintf("interface %s: in network namespace %s, not the daemon's (%s)", e.Name, e.Netns, next)
}
