// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/policy"
)

const (
	prefixSize = uint32(unsafe.Sizeof(bpfPrefix{}))
	clauseSize = uint32(unsafe.Sizeof(bpfClause{}))

	bpfNoPrealloc = unix.BPF_F_NO_PREALLOC
	bpfInnerMap   = unix.BPF_F_INNER_MAP
)

// networkWords is struct address: the 16 bytes as they are on the wire.
func networkWords(a netip.Addr) [4]uint32 {
	b := a.As16()
	var w [4]uint32
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func kernelClause(c policy.Clause) bpfClause {
	return bpfClause{
		Deadline: uint64(c.Deadline), First: c.First, Last: c.Last,
		Match: uint8(c.Match), Verdict: uint8(c.Verdict), Next: c.Next, Rule: c.Rule,
	}
}
