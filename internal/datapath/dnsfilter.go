// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
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
	strict  *ebpf.Program // lets in nothing but queries that the programs have sent
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
	f := &DNSFilter{Realm: realm}
	for _, p := range []struct {
		program **ebpf.Program
		others  int32 // what is let in of those that have no realm
	}{{&f.program, -1}, {&f.strict, 0}} {
		var err error
		*p.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "nf_dns_realm", Type: ebpf.SocketFilter, License: "Dual BSD/GPL",
			Instructions: asm.Instructions{
				asm.LoadMem(asm.R2, asm.R1, skbIfindex, asm.Word),
				asm.LoadMem(asm.R3, asm.R1, skbPriority, asm.Word),
				asm.Mov.Imm(asm.R0, 0),
				asm.JNE.Imm(asm.R2, loopback, "end"),
				asm.Mov.Imm32(asm.R0, -1), // all of it
				asm.JEq.Imm(asm.R3, int32(realm), "end"),
				asm.Mov.Imm(asm.R0, 0),
				asm.RSh.Imm(asm.R3, realmBits),
				asm.JEq.Imm(asm.R3, realmByte, "end"),
				asm.Mov.Imm32(asm.R0, p.others),
				asm.Return().WithSymbol("end"),
			},
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("filter of DNS sockets: %w", err), f.Close())
		}
	}
	return f, nil
}

// Strict is the filter for sockets in a namespace that is not the host's: who is there is not to ask for others.
func (f *DNSFilter) Strict() *DNSFilter { return &DNSFilter{Realm: f.Realm, program: f.strict} }

// On has the socket fd let in nothing else.
func (f *DNSFilter) On(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, f.program.FD()); err != nil {
		return fmt.Errorf("setsockopt SO_ATTACH_BPF: %w", err)
	}
	return nil
}

// Close gives up the programs, which sockets that have them keep.
func (f *DNSFilter) Close() error { return closeBPF(f.program, f.strict) }
