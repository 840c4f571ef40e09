// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/policy"
)

const (
	prefixSize = uint32(unsafe.Sizeof(bpfPrefix{}))
	clauseSize = uint32(unsafe.Sizeof(bpfClause{}))
	sourceSize = uint32(unsafe.Sizeof(bpfSource{}))

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
	k := bpfClause{
		Deadline: uint64(c.Deadline), First: c.First, Last: c.Last,
		Match: uint8(c.Match), Verdict: uint8(c.Verdict), Next: c.Next, Rule: c.Rule,
	}
	if c.Guard {
		k.Guard = 1
	}
	return k
}

func kernelSource(s policy.Source) bpfSource {
	if !s.Prefix.IsValid() {
		return bpfSource{Mac: s.MAC, Kind: uint8(bpfSourceKindSOURCE_MAC)}
	}
	k := bpfSource{Kind: uint8(bpfSourceKindSOURCE_PREFIX)}
	key := kernelPrefix(to128(s.Prefix))
	k.Address = key.Address
	k.Mask.Word = maskWords(int(key.Length))
	return k
}

// maskWords has the first bits set.
func maskWords(bits int) [4]uint32 {
	return networkWords(netip.AddrFrom16([16]byte(net.CIDRMask(bits, 128))))
}

// to128 gives an IPv4 prefix the form that addresses have in the kernel.
func to128(p netip.Prefix) netip.Prefix {
	if !p.Addr().Is4() {
		return p
	}
	return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), p.Bits()+96)
}
