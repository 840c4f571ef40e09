// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
)

// verdictHook is the hook that drops packets, the first on and the last off.
const verdictHook = "verdict"

// hook is one program of an attachment, at its place on the target. What holds it
// there has the hook's name in the attachment's pin directory, and needs no daemon.
type hook struct {
	name    string
	program *ebpf.Program
	attach  ebpf.AttachType
	by      holder
}

func (h hook) pin(dir string) string { return filepath.Join(dir, h.name) }

// holder is a way to hold a program on a target.
type holder interface {
	// hold puts the program on the target. Without a daemon it stays from then on.
	hold(h hook, dir string, t target.Target) error
	// missing is true if hold has yet to be called, or somebody has undone it.
	missing(h hook, dir string) (bool, error)
	// verify checks that the program sits on the target of r.
	verify(h hook, dir string, r bpfAttachment) error
	// update puts the program in the place of an earlier daemon's, without a gap.
	// What is missing is put back by Attach.
	update(h hook, dir string) error
}

// hooks are those that r needs, the verdict first.
func (d *Datapath) hooks(r bpfAttachment) []hook {
	b := &d.bpf
	if !isInterface(r) {
		return []hook{
			{verdictHook, b.NfCgEgress, ebpf.AttachCGroupInetEgress, cgroup{}},
			{"replies", b.NfCgIngress, ebpf.AttachCGroupInetIngress, cgroup{}},
			{"connect4", b.NfConnect4, ebpf.AttachCGroupInet4Connect, cgroup{}},
			{"connect6", b.NfConnect6, ebpf.AttachCGroupInet6Connect, cgroup{}},
			{"sendmsg4", b.NfSendmsg4, ebpf.AttachCGroupUDP4Sendmsg, cgroup{}},
			{"sendmsg6", b.NfSendmsg6, ebpf.AttachCGroupUDP6Sendmsg, cgroup{}},
			{"recvmsg4", b.NfRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg, cgroup{}},
			{"recvmsg6", b.NfRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg, cgroup{}},
			{"getpeername4", b.NfGetpeername4, ebpf.AttachCgroupInet4GetPeername, cgroup{}},
			{"getpeername6", b.NfGetpeername6, ebpf.AttachCgroupInet6GetPeername, cgroup{}},
			{"bind4", b.NfBind4, ebpf.AttachCGroupInet4Bind, cgroup{}},
			{"bind6", b.NfBind6, ebpf.AttachCGroupInet6Bind, cgroup{}},
		}
	}
	out, host, in := b.NfOutL2, b.NfHostL2, b.NfInL2
	if r.Flags&uint32(bpfAttachmentFlagATTACHMENT_HEADERLESS) != 0 {
		out, host, in = b.NfOutL3, b.NfHostL3, b.NfInL3
	}
	if r.Flags&uint32(bpfAttachmentFlagATTACHMENT_EGRESS) != 0 {
		return []hook{
			{verdictHook, host, ebpf.AttachTCXEgress, tcx{}},
			{"replies", in, ebpf.AttachTCXIngress, tcx{}},
		}
	}
	return []hook{
		{verdictHook, out, ebpf.AttachTCXIngress, tcx{}},
		{"replies", in, ebpf.AttachTCXEgress, tcx{}},
	}
}

// missing returns the hooks that are not on the target.
func missing(hooks []hook, dir string) ([]hook, error) {
	var lost []hook
	for _, h := range hooks {
		gone, err := h.by.missing(h, dir)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", h.name, err)
		}
		if gone {
			lost = append(lost, h)
		}
	}
	return lost, nil
}

// vanished recognises the kernel's ways to say that the target is no more.
func vanished(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrVanished, err)
	}
	return err
}
