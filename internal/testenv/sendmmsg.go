// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sendmmsg(2), which x/sys has no wrapper for.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32 // of what was sent
}

// sendmmsg sends all packets by one call and returns how many the kernel took.
func (s *sender) sendmmsg() (int, error) {
	name := s.sockaddr()
	messages := make([]mmsghdr, s.Count)
	for i := range messages {
		payload := s.packet(i)
		iov := &unix.Iovec{Base: &payload[0]}
		iov.SetLen(len(payload))
		messages[i].hdr = unix.Msghdr{Name: &name[0], Namelen: uint32(len(name)), Iov: iov}
		messages[i].hdr.SetIovlen(1)
	}
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
	runtime.KeepAlive(messages)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// sockaddr encodes the destination as struct sockaddr_in or sockaddr_in6.
func (s *sender) sockaddr() []byte {
	if s.v6 {
		b := binary.NativeEndian.AppendUint16(nil, unix.AF_INET6)
		b = binary.BigEndian.AppendUint16(b, s.To.Port())
		b = append(b, 0, 0, 0, 0) // flow label
		addr := s.To.Addr().As16()
		b = append(b, addr[:]...)
		return append(b, 0, 0, 0, 0) // scope
	}
	b := binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
	b = binary.BigEndian.AppendUint16(b, s.To.Port())
	addr := s.To.Addr().As4()
	b = append(b, addr[:]...)
	return append(b, make([]byte, 8)...)
}
