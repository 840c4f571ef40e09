// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"github.com/cilium/ebpf/link"

	"github.com/netfence/netfence/internal/target"
)

// cgroup holds programs on cgroups.
type cgroup struct{ pinnedLink }

func (c cgroup) hold(h hook, dir string, t target.Target) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: t.Name, Attach: h.attach, Program: h.program})
	return c.pin(h, dir, l, err)
}
