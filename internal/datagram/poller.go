// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"encoding/binary"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Poller waits for sockets. It has a goroutine, and a thread, while it has sockets.
type Poller struct {
	begin func()
	end   func() (again bool)

	running sync.WaitGroup

	// mu guards what follows. Lock order: Conn.mu before Poller.mu.
	mu      sync.Mutex
	sockets map[uint32]*watched // by id
	last    uint32              // id given out; 0 is none's
	epoll   int                 // both are open while there are sockets, and until the
	wake    int                 // goroutine has noticed that there are none
}

// watched is a socket that a Poller waits for.
type watched struct {
	conn   *Conn
	poller *Poller
	ready  func() bool
	id     uint32
}

// NewPoller returns a Poller without sockets. Whatever its goroutine does is done
// between a call of begin and one of end. When end returns true it comes back
// without having waited: there is something to be done beside reading sockets.
func NewPoller(begin func(), end func() (again bool)) *Poller {
	return &Poller{begin: begin, end: end, sockets: make(map[uint32]*watched), epoll: -1}
}

// Wait returns when there is no socket any more, and nothing done.
func (p *Poller) Wait() { p.running.Wait() }

func (p *Poller) add(w *watched, fd int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoll < 0 {
		if err := p.start(); err != nil {
			return err
		}
	}
	for w.id == 0 || p.sockets[w.id] != nil {
		p.last++
		w.id = p.last
	}
	p.sockets[w.id] = w
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.id)}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		p.drop(w)
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// start has the goroutine run. The caller holds p.mu.
func (p *Poller) start() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		if err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
			unix.Close(wake)
		}
	}
	if err != nil {
		unix.Close(epoll)
		return os.NewSyscallError("eventfd", err)
	}
	p.epoll, p.wake = epoll, wake
	p.running.Go(func() { p.run(epoll) })
	return nil
}

// remove is called while fd is open.
func (p *Poller) remove(w *watched, fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sockets[w.id] != w {
		return
	}
	// It was added, and it fails for nothing else.
	_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	p.drop(w)
}

// drop has the goroutine end with the last socket. The caller holds p.mu.
func (p *Poller) drop(w *watched) {
	delete(p.sockets, w.id)
	if len(p.sockets) == 0 {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(p.wake, one[:]) // EAGAIN: it is awake
	}
}

// socketsReady are taken note of at once.
const socketsReady = 64

func (p *Poller) run(epoll int) {
	var events [socketsReady]unix.EpollEvent
	var ready [socketsReady]*watched
	for again := false; ; {
		n := wait(epoll, events[:], !again)
		p.begin()
		for _, w := range p.find(events[:n], ready[:0]) {
			if !w.ready() {
				w.conn.unwatch(w)
			}
		}
		clear(ready[:])
		if again = p.end(); !again && p.over() {
			return
		}
	}
}

// wait returns how many events there are.
func wait(epoll int, events []unix.EpollEvent, block bool) int {
	for {
		var n int
		var err error
		if block {
			n, err = unix.EpollWait(epoll, events, -1)
		} else { // the scheduler need not know of it
			at, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
			if n = int(at); errno != 0 {
				err = errno
			}
		}
		switch err {
		case nil:
			return n
		case unix.EINTR:
		default:
			panic(os.NewSyscallError("epoll_wait", err)) // EBADF, EFAULT, EINVAL: not by what anybody sends
		}
	}
}

// find appends whose events they are. An event may be of a socket that is removed meanwhile: ids are not used again soon.
func (p *Poller) find(events []unix.EpollEvent, ready []*watched) []*watched {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range events {
		if w := p.sockets[uint32(events[i].Fd)]; w != nil {
			ready = append(ready, w)
		} else if events[i].Fd == 0 {
			var count [8]byte
			_, _ = unix.Read(p.wake, count[:]) // EAGAIN: somebody has, which is as good
		}
	}
	return ready
}

// over ends the goroutine if there are no sockets.
func (p *Poller) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sockets) > 0 {
		return false
	}
	unix.Close(p.wake)
	unix.Close(p.epoll)
	p.epoll = -1
	return true
}
