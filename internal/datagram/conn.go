// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is a UDP socket that no call waits for; a Poller does. Go's own poller does
// not know it: that would have a thread wake up for each datagram, only to find
// that another one reads already.
type Conn struct {
	file *os.File
	raw  syscall.RawConn

	mu      sync.Mutex
	closed  bool
	watched *watched // nil: nobody waits for it
}

// NewConn takes the socket over from c, which is closed.
func NewConn(c *net.UDPConn) (*Conn, error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var fcntlErr error
	err = raw.Control(func(from uintptr) {
		if fd, fcntlErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0); fcntlErr == nil {
			// os.NewFile hands what would not block to Go's poller. Both descriptors share
			// the flag, and the other one is closed before anybody reads or writes.
			fcntlErr = unix.SetNonblock(fd, false)
		}
	})
	if err == nil {
		err = os.NewSyscallError("fcntl", fcntlErr)
	}
	if err != nil {
		return nil, err
	}
	k := &Conn{file: os.NewFile(uintptr(fd), "udp")}
	if k.raw, err = k.file.SyscallConn(); err != nil {
		k.file.Close()
		return nil, err
	}
	return k, nil
}

// Control calls f with the descriptor, which is not closed before f returns. The
// error is net.ErrClosed.
func (c *Conn) Control(f func(fd uintptr)) error {
	if c.raw.Control(f) != nil {
		return net.ErrClosed
	}
	return nil
}

// Watch has p call ready whenever there is something to be read, until ready
// returns false or the socket is closed. It is for sockets that nobody watches.
func (c *Conn) Watch(p *Poller, ready func() bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	w := &watched{conn: c, poller: p, ready: ready}
	var err error
	if c.raw.Control(func(fd uintptr) { err = p.add(w, int(fd)) }) != nil {
		return net.ErrClosed
	}
	if err == nil {
		c.watched = w
	}
	return err
}

// unwatch ends it, if it is still w.
func (c *Conn) unwatch(w *watched) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched != w {
		return
	}
	c.watched = nil
	_ = c.Control(func(fd uintptr) { w.poller.remove(w, int(fd)) }) // what is closed was removed before
}

// Close ends the watching as well, but does not wait for a call of ready that has begun.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if w := c.watched; w != nil {
		c.watched = nil
		_ = c.Control(func(fd uintptr) { w.poller.remove(w, int(fd)) }) // it is open
	}
	return c.file.Close()
}
