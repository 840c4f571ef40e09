// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// verdictHook is the link that drops packets, the first on and the last off.
const verdictHook = "verdict"

// hook is one link of an attachment, and its pin's name.
type hook struct {
	name    string
	program *ebpf.Program
	attach  ebpf.AttachType
}

func (h hook) pin(dir string) string { return filepath.Join(dir, h.name) }

// hooks are the links that r needs, the verdict first.
func (d *Datapath) hooks(r bpfAttachment) []hook {
	b := &d.bpf
	if !isInterface(r) {
		return []hook{
			{verdictHook, b.NfCgEgress, ebpf.AttachCGroupInetEgress},
			{"replies", b.NfCgIngress, ebpf.AttachCGroupInetIngress},
			{"connect4", b.NfConnect4, ebpf.AttachCGroupInet4Connect},
			{"connect6", b.NfConnect6, ebpf.AttachCGroupInet6Connect},
			{"sendmsg4", b.NfSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
			{"sendmsg6", b.NfSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
			{"recvmsg4", b.NfRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
			{"recvmsg6", b.NfRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
			{"getpeername4", b.NfGetpeername4, ebpf.AttachCgroupInet4GetPeername},
			{"getpeername6", b.NfGetpeername6, ebpf.AttachCgroupInet6GetPeername},
			{"bind4", b.NfBind4, ebpf.AttachCGroupInet4Bind},
			{"bind6", b.NfBind6, ebpf.AttachCGroupInet6Bind},
		}
	}
	out, host, in := b.NfOutL2, b.NfHostL2, b.NfInL2
	if r.Flags&uint32(bpfAttachmentFlagATTACHMENT_HEADERLESS) != 0 {
		out, host, in = b.NfOutL3, b.NfHostL3, b.NfInL3
	}
	if r.Flags&uint32(bpfAttachmentFlagATTACHMENT_EGRESS) != 0 {
		return []hook{
			{verdictHook, host, ebpf.AttachTCXEgress},
			{"replies", in, ebpf.AttachTCXIngress},
		}
	}
	return []hook{
		{verdictHook, out, ebpf.AttachTCXIngress},
		{"replies", in, ebpf.AttachTCXEgress},
	}
}

// hold attaches a hook and pins it in dir. The pin comes before anything else:
// a link without one ends with its last file descriptor.
func (h hook) hold(dir string, attach func() (link.Link, error)) error {
	l, err := attach()
	if err != nil {
		return fmt.Errorf("link %s: %w", h.name, vanished(err))
	}
	if err := l.Pin(h.pin(dir)); err != nil {
		return errors.Join(fmt.Errorf("pin link %s: %w", h.name, err), l.Close())
	}
	return l.Close()
}

// onInterface attaches at the head: a program before ours that redirects would hide ours.
func (h hook) onInterface(dir string, ifindex int) error {
	return h.hold(dir, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{
			Interface: ifindex, Program: h.program, Attach: h.attach, Anchor: link.Head(),
		})
	})
}

func (h hook) onCgroup(dir, path string) error {
	return h.hold(dir, func() (link.Link, error) {
		return link.AttachCgroup(link.CgroupOptions{Path: path, Attach: h.attach, Program: h.program})
	})
}

// missing returns the hooks that have no pin in dir.
func missing(hooks []hook, dir string) ([]hook, error) {
	var none []hook
	for _, h := range hooks {
		_, err := os.Stat(h.pin(dir))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			none = append(none, h)
		case err != nil:
			return nil, fmt.Errorf("link %s: %w", h.name, err)
		}
	}
	return none, nil
}

// vanished recognises the kernel's ways to say that the target is no more.
func vanished(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrVanished, err)
	}
	return err
}
