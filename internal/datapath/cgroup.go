// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
)

// cgroup holds the verdict of a cgroup, by the one link of the attachment: the first on
// and the last off, and what tells which cgroup it is.
type cgroup struct{ pinnedLink }

// cgroupHooks are the hooks of a cgroup, the verdict first.
func cgroupHooks(b *bpfPrograms, o *ours) []hook {
	verdict, other := cgroup{pinnedLink{o}}, linkless{pinnedLink{o}}
	return []hook{
		{verdictHook, b.NfCgEgress, ebpf.AttachCGroupInetEgress, verdict},
		{repliesHook, b.NfCgIngress, ebpf.AttachCGroupInetIngress, other},
		{"connect4", b.NfConnect4, ebpf.AttachCGroupInet4Connect, other},
		{"connect6", b.NfConnect6, ebpf.AttachCGroupInet6Connect, other},
		{"sendmsg4", b.NfSendmsg4, ebpf.AttachCGroupUDP4Sendmsg, other},
		{"sendmsg6", b.NfSendmsg6, ebpf.AttachCGroupUDP6Sendmsg, other},
		{"recvmsg4", b.NfRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg, other},
		{"recvmsg6", b.NfRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg, other},
		{"getpeername4", b.NfGetpeername4, ebpf.AttachCgroupInet4GetPeername, other},
		{"getpeername6", b.NfGetpeername6, ebpf.AttachCgroupInet6GetPeername, other},
		{"bind4", b.NfBind4, ebpf.AttachCGroupInet4Bind, other},
		{"bind6", b.NfBind6, ebpf.AttachCGroupInet6Bind, other},
	}
}

// onCgroup opens a cgroup for as long as do takes. By its id: a path may lead to another
// one by now, and a daemon that has just started knows none.
func onCgroup(id uint64, do func(fd int) error) error {
	fd, err := target.OpenCgroup(id)
	if err != nil {
		return vanished(err)
	}
	return errors.Join(do(fd), unix.Close(fd))
}

func (c cgroup) hold(h hook, dir string, fd int) error {
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: fd, Attach: h.attach, Program: h.program})
	return c.pin(h, dir, l, err)
}

// watch asks the kernel which programs are on the cgroup. It does not ask for their
// order: each of them can only refuse more.
func (c cgroup) watch(h hook, _ string, _ bpfAttachment, fd int) error { return c.ours.isOn(fd, h) }

// on returns the programs of ours that are on a cgroup at a hook.
func (o *ours) on(fd int, h hook) ([]ebpf.ProgramID, error) {
	all, err := link.QueryPrograms(link.QueryOptions{Target: fd, Attach: h.attach})
	if err != nil {
		return nil, fmt.Errorf("programs at %s: %w", h.name, vanished(err))
	}
	var mine []ebpf.ProgramID
	for _, p := range all.Programs {
		is, err := o.has(p.ID)
		if err != nil {
			return nil, err
		}
		if is {
			mine = append(mine, p.ID)
		}
	}
	return mine, nil
}

// isOn returns fs.ErrNotExist unless a program of ours is there.
func (o *ours) isOn(fd int, h hook) error {
	mine, err := o.on(fd, h)
	if err == nil && len(mine) == 0 {
		err = fmt.Errorf("program at %s: %w", h.name, fs.ErrNotExist)
	}
	return err
}
