// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"io/fs"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
)

// cgroup holds programs on cgroups.
type cgroup struct{ pinnedLink }

func (c cgroup) hold(h hook, dir string, t target.Target) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: t.Name, Attach: h.attach, Program: h.program})
	return c.pin(h, dir, l, err)
}

// watch asks the kernel which programs are on the cgroup. It does not ask for their
// order: each of them can only refuse more.
func (c cgroup) watch(h hook, dir string, r bpfAttachment, t target.Target) error {
	if t.Name == "" {
		return c.verify(h, dir, r)
	}
	fd, err := unix.Open(t.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return vanished(err)
	}
	on, err := link.QueryPrograms(link.QueryOptions{Target: fd, Attach: h.attach})
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	for _, p := range on.Programs {
		if mine, err := c.ours.has(p.ID); mine || err != nil {
			return err
		}
	}
	return fs.ErrNotExist
}
