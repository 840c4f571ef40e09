// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"github.com/cilium/ebpf/link"

	"github.com/netfence/netfence/internal/target"
)

// tcx holds programs on interfaces, from Linux 6.6 on.
type tcx struct{ pinnedLink }

// hold attaches at the head: a program before ours that redirects would hide ours.
func (x tcx) hold(h hook, dir string, t target.Target) error {
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: t.Ifindex, Program: h.program, Attach: h.attach, Anchor: link.Head(),
	})
	return x.pin(h, dir, l, err)
}
