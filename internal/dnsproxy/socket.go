// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datagram"
)

const (
	// socketQueries and socketLife are after how many queries, and how long, a
	// socket is replaced by one with another port: whoever found out its port has
	// little of it.
	socketQueries = 256
	socketLife    = 5 * time.Second
	// socketFlight is how many queries are in flight on one socket. Their ids are
	// drawn at random from 65536, never one that is in use.
	socketFlight = 256
	// socketsPerServer take more queries than limits allow to be in flight. Of
	// those open, each query takes one at random.
	socketsPerServer = 64
	// fewSockets are open wherever there is anything to ask, so that a port says
	// little even then; beyond them perSocket queries are in flight on each before
	// another is opened.
	fewSockets = 4
	perSocket  = 32
	// answersRead is how many are read at once, each of at most answerBytes: more than
	// is asked for. What is larger is asked for over TCP.
	answersRead = 16
	answerBytes = 2048
)

// server is one that is asked: its sockets, and what is known of it.
type server struct {
	addr netip.AddrPort
	u    *upstream

	// mu guards what follows. Lock order: server.mu before socket.mu.
	mu      sync.Mutex
	open    []*socket // that take queries
	flight  int       // on all its sockets, those that take no more included
	plain   time.Time // until when it is asked without EDNS
	failed  time.Time // when it last did; zero: it answers
	missed  int       // answers in a row that did not come in time
	rtt     time.Duration
	streams []*stream // TCP connections that wait for use
	closed  bool

	streaming gate // queries over TCP
}

// socket is a connected UDP socket, and so a source port.
type socket struct {
	server *server
	conn   *datagram.Conn
	retire *time.Timer
	left   int // queries that it still takes; guarded by server.mu

	mu      sync.Mutex
	waiting map[uint16]*try
	retired bool // closed when nothing waits
}

var errBusy = errors.New("too many queries in flight")

// send has a try's query sent from one of the server's sockets, with the next
// flush. The answer is handed to the try; an error says that there will be none.
func (s *server) send(t *try) error {
	if err := s.take(t); err != nil {
		return err
	}
	s.u.out.add(t)
	return nil
}

// take picks a socket for a try, which waits there for its answer from now on. It
// opens one where those there are have enough to do.
func (s *server) take(t *try) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight >= socketsPerServer*socketFlight {
		return errBusy
	}
	if len(s.open) < fewSockets || s.flight >= perSocket*len(s.open) && len(s.open) < socketsPerServer {
		k, err := s.u.dial(s)
		if err != nil {
			return err
		}
		s.open = append(s.open, k)
	}
	at := rand.IntN(len(s.open))
	k := s.open[at]
	k.await(t)
	if k.left--; k.left == 0 {
		s.open = slices.Delete(s.open, at, at+1)
		k.end()
	}
	s.flight++
	return nil
}

// await gives a try an id and has it wait.
func (k *socket) await(t *try) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := uint16(rand.Uint32())
	for k.waiting[id] != nil {
		id = uint16(rand.Uint32())
	}
	binary.BigEndian.PutUint16(t.sent, id)
	t.socket = k
	k.waiting[id] = t
}

// dial opens a socket. Its port is the kernel's choice, which is random.
func (u *upstream) dial(s *server) (*socket, error) {
	dialer := net.Dialer{Control: u.control}
	c, err := dialer.Dial("udp", s.addr.String())
	if err != nil {
		return nil, systemError(err)
	}
	conn, err := datagram.NewConn(c.(*net.UDPConn))
	if err != nil {
		return nil, systemError(err)
	}
	k := &socket{server: s, conn: conn, left: socketQueries/2 + rand.IntN(socketQueries/2), waiting: make(map[uint16]*try)}
	if err := conn.Watch(u.sockets, k.read); err != nil {
		conn.Close()
		return nil, systemError(err)
	}
	if u.kept.Add(1) > u.most {
		k.left = 1
	}
	k.retire = time.AfterFunc(socketLife, func() {
		s.mu.Lock()
		s.open = slices.DeleteFunc(s.open, func(other *socket) bool { return other == k })
		s.mu.Unlock()
		k.end()
	})
	return k, nil
}

// end has the socket close as soon as nothing waits.
func (k *socket) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.retired = true
	k.closeIfDone()
}

func (k *socket) closeIfDone() {
	if k.retired && len(k.waiting) == 0 {
		k.retire.Stop()
		if k.conn.Close() == nil { // it was open
			k.server.u.kept.Add(-1)
		}
	}
}

// forget ends the wait for a try's answer, if it still goes on.
func (k *socket) forget(t *try) {
	k.mu.Lock()
	id := binary.BigEndian.Uint16(t.sent)
	waited := k.waiting[id] == t
	if waited {
		delete(k.waiting, id)
		k.closeIfDone()
	}
	k.mu.Unlock()
	if waited {
		k.server.landed(1)
	}
}

func (s *server) landed(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flight -= n
}

// fail ends the wait for all answers: the socket is of no use any more.
func (k *socket) fail(err error) {
	s := k.server
	s.mu.Lock()
	s.open = slices.DeleteFunc(s.open, func(other *socket) bool { return other == k })
	s.mu.Unlock()
	k.mu.Lock()
	tries := k.waiting
	k.waiting, k.retired = make(map[uint16]*try), true
	k.closeIfDone()
	k.mu.Unlock()
	s.landed(len(tries))
	for _, t := range tries {
		t.quest.failed(t, err)
	}
}

// read hands out the answers that are there. What is no answer to
// what waits for one, be it late, double or forged, is passed over.
func (k *socket) read() bool {
	in := batches.Get().(*datagram.Batch)
	defer batches.Put(in)
	defer k.server.u.flush()
	n, err := in.Receive(k.conn)
	if err != nil {
		k.fail(systemError(err))
		return false
	}
	for i := range n {
		k.deliver(in.Data(i))
	}
	return true
}

var batches = sync.Pool{New: func() any { return datagram.New(answersRead, answerBytes, 0, false) }}

// deliver passes a datagram to the try that it answers.
func (k *socket) deliver(in []byte, whole bool) {
	if len(in) < headerBytes {
		return
	}
	id := binary.BigEndian.Uint16(in)
	k.mu.Lock()
	t := k.waiting[id]
	k.mu.Unlock()
	if t == nil {
		return
	}
	ok, err := match(t.sent, in, true)
	if ok && !whole {
		ok, err = false, errUseTCP
	}
	if !ok && err == nil {
		return
	}
	var a *answer
	if ok {
		if a, err = t.read(in); a == nil && err == nil {
			return
		}
	}
	k.forget(t)
	t.quest.answered(t, a, err)
}

// systemError leaves out what the package net adds: the addresses, which the
// caller knows.
func systemError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
