// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// InterfaceHook is a way to get programs onto interfaces.
type InterfaceHook uint8

// The ways there are.
const (
	HookAuto   InterfaceHook = iota // tcx where the kernel has it
	HookTCX                         // links, which nobody else can take away; Linux 6.6
	HookClsact                      // filters of a queueing discipline
)

// choose sets how interfaces are held from now on.
func (d *Datapath) choose(way InterfaceHook) error {
	if way == HookClsact || d.only == Cgroups {
		d.filters = true
		return nil
	}
	err := haveTCX(d.bpf.NfInL2)
	if way == HookAuto && errors.Is(err, ebpf.ErrNotSupported) {
		d.filters, err = true, nil
	}
	if err != nil {
		return fmt.Errorf("interface_hook tcx: %w (needs Linux 6.6; auto takes clsact where tcx is missing)", err)
	}
	return nil
}

// haveTCX tries a device that there is not.
func haveTCX(program *ebpf.Program) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: program, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	return closeBPF(l)
}
