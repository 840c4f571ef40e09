// SPDX-License-Identifier: Apache-2.0

// Package datagram receives and sends many datagrams by one system call.
package datagram

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// header is struct mmsghdr of recvmmsg(2).
type header struct {
	unix.Msghdr
	length uint32
}

// Batch is room for datagrams, either to receive or to send. It is for one
// goroutine at a time.
type Batch struct {
	headers  []header
	vectors  []unix.Iovec
	names    []unix.RawSockaddrInet6 // IPv4's is shorter
	data     []byte
	control  []byte
	size     int // of data, for each
	controls int // of control, for each

	n     int // received, or to be sent
	v6    bool
	from  int // the first that is not sent yet
	err   error
	fails func(i int, err error)
	read  func(uintptr)
	write func(uintptr)
}

// New returns room for n datagrams of size bytes, each with so many bytes of
// control messages. v6 is the family of the socket.
func New(n, size, control int, v6 bool) *Batch {
	b := &Batch{
		headers: make([]header, n), vectors: make([]unix.Iovec, n), names: make([]unix.RawSockaddrInet6, n),
		data: make([]byte, n*size), control: make([]byte, n*control), size: size, controls: control, v6: v6,
	}
	for i := range b.headers {
		h := &b.headers[i]
		b.vectors[i].Base = &b.data[i*size]
		h.Iov, h.Name = &b.vectors[i], (*byte)(unsafe.Pointer(&b.names[i]))
		h.SetIovlen(1)
		if control > 0 {
			h.Control = &b.control[i*control]
		}
	}
	b.read, b.write = b.receive, b.send
	return b
}

// Receive takes all datagrams that are there and find room. It does not wait for any.
func (b *Batch) Receive(c *Conn) (n int, err error) {
	for i := range b.headers {
		h := &b.headers[i]
		b.vectors[i].SetLen(b.size)
		h.Name, h.Namelen, h.Flags = (*byte)(unsafe.Pointer(&b.names[i])), uint32(unsafe.Sizeof(b.names[i])), 0
		h.SetControllen(b.controls)
	}
	b.n, b.err = 0, nil
	if err := c.Control(b.read); err != nil {
		return 0, err
	}
	return b.n, b.err
}

// receive does not wait, and neither does send: the Go scheduler, which would take
// the processor away from calls that last longer than some microseconds, as those
// with many datagrams do, is not told of them.
func (b *Batch) receive(fd uintptr) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.headers[0])), uintptr(len(b.headers)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.n = int(n)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
		default:
			b.err = os.NewSyscallError("recvmmsg", errno)
		}
		return
	}
}

// Data is the i-th datagram received. ok is false for one that did not find
// room, or whose control messages did not.
func (b *Batch) Data(i int) (data []byte, ok bool) {
	h := &b.headers[i]
	return b.data[i*b.size:][:min(int(h.length), b.size)], h.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) == 0
}

// Control are its control messages.
func (b *Batch) Control(i int) []byte {
	return b.control[i*b.controls:][:min(int(b.headers[i].Controllen), b.controls)]
}

// From is whom it is from, without a zone; the zero value: nobody that can be told.
func (b *Batch) From(i int) netip.AddrPort {
	name := &b.names[i]
	port := networkPort(&name.Port)
	switch name.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), port)
	}
	return netip.AddrPort{}
}

// networkPort reads a port as it stands in a socket address.
func networkPort(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }

// Len is how many datagrams wait to be sent.
func (b *Batch) Len() int { return b.n }

// Full is true if no more find room.
func (b *Batch) Full() bool { return b.n == len(b.headers) }

// Add takes another one to be sent, of which it makes a copy: to an address, or
// where that is none, to whom the socket is connected to. It is false for one
// that finds no room.
func (b *Batch) Add(data []byte, to netip.AddrPort, control []byte) bool {
	if b.Full() || len(data) > b.size || len(control) > b.controls {
		return false
	}
	i := b.n
	b.n++
	h := &b.headers[i]
	copy(b.data[i*b.size:], data)
	copy(b.control[i*b.controls:], control)
	b.vectors[i].SetLen(len(data))
	h.SetControllen(len(control))
	h.Name, h.Namelen = nil, 0
	if to.IsValid() {
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names[i])), b.address(&b.names[i], to)
	}
	return true
}

func (b *Batch) address(name *unix.RawSockaddrInet6, to netip.AddrPort) uint32 {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&name.Port))[:], to.Port())
	if b.v6 {
		name.Family, name.Flowinfo, name.Scope_id, name.Addr = unix.AF_INET6, 0, 0, to.Addr().As16()
		return unix.SizeofSockaddrInet6
	}
	v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
	v4.Family, v4.Addr = unix.AF_INET, to.Addr().Unmap().As4()
	return unix.SizeofSockaddrInet4
}

// Send sends all that wait, and leaves none waiting. One that cannot be sent
// keeps none of the others: failed is called for it, if it is not nil. What finds no
// room in the socket's queue is lost, as it may be everywhere on its way.
func (b *Batch) Send(c *Conn, failed func(i int, err error)) {
	if b.n == 0 {
		return
	}
	b.from, b.fails = 0, failed
	if err := c.Control(b.write); err != nil {
		for ; b.from < b.n; b.from++ {
			b.fail(err)
		}
	}
	b.n, b.fails = 0, nil
	runtime.KeepAlive(b)
}

func (b *Batch) fail(err error) {
	if b.fails != nil {
		b.fails(b.from, err)
	}
}

func (b *Batch) send(fd uintptr) {
	for b.from < b.n {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.headers[b.from])), uintptr(b.n-b.from), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.from += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			b.from = b.n
		default:
			b.fail(os.NewSyscallError("sendmmsg", errno))
			b.from++
		}
	}
}
