// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// DNSFilter is what sockets that listen for cgroups let in: what came by lo, and no query that another datapath's
// programs have sent there. A DNS address names an attachment by its index, which each datapath has of its own; and
// the programs of one whose process was killed go on sending queries to a port that somebody else's may have by now.
//
// The programs write the realm into skb->priority, which nothing between two sockets of a host looks at. Processes
// that nothing filters, and the others of Netfence's, are told apart by its first byte.
type DNSFilter struct {
	Realm   uint32
	program *ebpf.Program
}

// Offsets in struct __sk_buff (linux/bpf.h), and what every realm begins with.
const (
	skbPriority = 32
	skbIfindex  = 40
	realmByte   = 0x4e
	realmBits   = 24
	loopback    = 1 // in every namespace
)

// NewDNSFilter makes one with a realm of its own. The sockets keep it, whoever closes it.
func NewDNSFilter() (*DNSFilter, error) {
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails
	realm := realmByte<<realmBits | binary.NativeEndian.Uint32(random[:])>>(32-realmBits)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "nf_dns_realm", Type: ebpf.SocketFilter, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, skbIfindex, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, skbPriority, asm.Word),
			asm.Mov.Imm(asm.R0, 0),
			asm.JNE.Imm(asm.R2, loopback, "end"),
			asm.JEq.Imm(asm.R3, int32(realm), "pass"),
			asm.RSh.Imm(asm.R3, realmBits),
			asm.JEq.Imm(asm.R3, realmByte, "end"),
			asm.Mov.Imm32(asm.R0, -1).WithSymbol("pass"), // all of it
			asm.Return().WithSymbol("end"),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("filter of DNS sockets: %w", err)
	}
	return &DNSFilter{realm, program}, nil
}

// On has the socket fd let in nothing else.
func (f *DNSFilter) On(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, f.program.FD()); err != nil {
		return fmt.Errorf("setsockopt SO_ATTACH_BPF: %w", err)
	}
	return nil
}

// Close gives up the program, which sockets that have it keep.
func (f *DNSFilter) Close() error { return f.program.Close() }
