// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
)

const (
	skbTCIndex       = 44        // offset in struct __sk_buff (linux/bpf.h)
	networkHeader    = -0x100000 // SKF_NET_OFF
	ipv4Ordinary     = 0x45      // version and length: no options
	ipv6NextHeader   = 6         // offset in the header
	ipVersionShift   = 4
	ipVersion6       = 6
	everything       = -1
	nothing          = 0
	protocolTCP      = unix.IPPROTO_TCP
	protectedMetrics = uint32(0) // index in nf_protected
)

// Shut has a TCP socket that does not listen yet, and the connections that it
// will accept, let in nothing of the workloads behind interfaces: the programs have
// left the attachment in skb->tc_index, which stays with a packet up to its socket.
//
// Nor does it take IP options or extension headers, which no scraper sends: what
// Protect has the programs of cgroups look for is then where they look for it.
func Shut(socket syscall.RawConn) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "nf_shut", Type: ebpf.SocketFilter, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1), // where LD_ABS wants it
			asm.LoadMem(asm.R2, asm.R6, skbTCIndex, asm.Word),
			asm.JNE.Imm(asm.R2, 0, "drop"),
			asm.LoadAbs(networkHeader, asm.Byte),
			asm.JEq.Imm(asm.R0, ipv4Ordinary, "pass"),
			asm.RSh.Imm(asm.R0, ipVersionShift),
			asm.JNE.Imm(asm.R0, ipVersion6, "drop"),
			asm.LoadAbs(networkHeader+ipv6NextHeader, asm.Byte),
			asm.JNE.Imm(asm.R0, protocolTCP, "drop"),
			asm.Mov.Imm32(asm.R0, everything).WithSymbol("pass"),
			asm.Return(),
			asm.Mov.Imm(asm.R0, nothing).WithSymbol("drop"),
			asm.Return(),
		},
	})
	if err != nil {
		return fmt.Errorf("filter of a listener: %w", err)
	}
	cerr := socket.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_BPF, program.FD())
	})
	if err := errors.Join(err, cerr, closeBPF(program)); err != nil { // the socket keeps it
		return fmt.Errorf("filter of a listener: %w", err)
	}
	return nil
}

// Protect keeps all cgroups, in every mode, from the TCP socket that listens at
// an address of the namespace that the caller is in; the unspecified address
// stands for all. The zero value ends that. It holds without a daemon, too, until
// the next one says otherwise.
func (d *Datapath) Protect(at netip.AddrPort) error {
	socket := bpfProtectedSocket{Port: uint32(at.Port())}
	if at.Port() != 0 {
		cookie, err := target.NetnsCookie()
		if err != nil {
			return fmt.Errorf("protect %s: %w", at, err)
		}
		socket.Netns = cookie
		if addr := at.Addr().Unmap(); !addr.IsUnspecified() {
			socket.Address.Word = networkWords(addr)
		}
	}
	if err := d.bpf.NfProtected.Put(protectedMetrics, &socket); err != nil {
		return fmt.Errorf("protect %s: %w", at, err)
	}
	return nil
}
