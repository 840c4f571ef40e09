// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// EchoServer returns what it gets over TCP and UDP on a port of every address of
// the namespace, until the test ends.
func EchoServer(t TB, ns *NS, port uint16) {
	t.Helper()
	var s *echoServer
	ns.do(t, "echo server", func() (err error) {
		s, err = serveEcho(fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("echo server: %v", err)
		}
	})
}

type echoServer struct {
	closers []io.Closer
	wg      sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

func serveEcho(addr string) (*echoServer, error) {
	s := &echoServer{conns: map[net.Conn]bool{}}
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, tcp)
	udp, err := listenUDP(addr)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.closers = append(s.closers, udp)
	s.wg.Go(func() { s.accept(tcp) })
	s.wg.Go(func() { answer(udp) })
	return s, nil
}

// listenUDP listens on both families and has the kernel tell the address that each
// packet was sent to.
func listenUDP(addr string) (*net.UDPConn, error) {
	listen := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		ctlErr := conn.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1),
				// Or an IPv6 address of NS.Own could not be a source.
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1))
		})
		return errors.Join(ctlErr, err)
	}}
	conn, err := listen.ListenPacket(context.Background(), "udp", addr)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// answer returns each packet from the address that it was sent to, one of many
// here: what IPV6_PKTINFO said of the packet says the same of the answer (ipv6(7)).
func answer(conn *net.UDPConn) {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else an ICMP error about an earlier answer
			_, _, _ = conn.WriteMsgUDPAddrPort(buf[:n], oob[:oobn], from) // lost, as packets are
		}
	}
}

func (s *echoServer) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if !s.track(conn) {
			_ = conn.Close()
			return
		}
		s.wg.Go(func() {
			_, _ = io.Copy(conn, conn) // ends when the peer closes or is cut off
			_ = conn.Close()
		})
	}
}

func (s *echoServer) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[conn] = true
	return !s.closed
}

// Close ends the server and its connections.
func (s *echoServer) Close() error {
	s.mu.Lock()
	s.closed = true
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	for conn := range s.conns {
		_ = conn.Close() // most are closed already
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(errs...)
}
