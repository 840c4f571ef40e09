// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Nameserver answers from a Zone and counts what it is asked.
type Nameserver struct {
	zone   atomic.Pointer[zone]
	hangs  atomic.Bool
	fails  atomic.Bool
	closed []func() error
	serve  sync.WaitGroup

	mu     sync.Mutex
	asked  map[Question]int
	errors []error
}

// Question is what a Nameserver was asked, where, and how.
type Question struct {
	Name string // lower case, with its final dot
	Type string // "A"
	Addr netip.Addr
	TCP  bool
}

// ServeDNS answers on port 53 of each of the namespace's addresses, over UDP and TCP, until the test ends. Addresses of
// NS.Own are good.
func ServeDNS(t TB, ns *NS, z Zone, addrs ...string) *Nameserver {
	t.Helper()
	s := &Nameserver{asked: map[Question]int{}}
	s.Serve(t, z)
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Errorf("nameserver: %v", err)
		}
	})
	for _, text := range addrs {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatalf("nameserver: %v", err)
		}
		ns.do(t, "nameserver "+text, func() error { return s.listen(netip.AddrPortFrom(addr, 53)) })
	}
	return s
}

func (s *Nameserver) listen(addr netip.AddrPort) error {
	listen := net.ListenConfig{Control: func(network, _ string, conn syscall.RawConn) error {
		var err error
		ctlErr := conn.Control(func(fd uintptr) {
			if strings.HasSuffix(network, "6") {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) // for NS.Own
			}
		})
		return errors.Join(ctlErr, err)
	}}
	packets, err := listen.ListenPacket(context.Background(), "udp", addr.String())
	if err != nil {
		return err
	}
	streams, err := listen.Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		return errors.Join(err, packets.Close())
	}
	for _, server := range []*dns.Server{{PacketConn: packets}, {Listener: streams}} {
		server.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
			s.answer(w, request, addr.Addr(), server.Listener != nil)
		})
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		s.serve.Go(func() {
			if err := server.ActivateAndServe(); err != nil {
				s.failed(err)
			}
		})
		<-started // Shutdown refuses to end what has not begun
		s.closed = append(s.closed, server.Shutdown)
	}
	return nil
}

func (s *Nameserver) close() error {
	var errs []error
	for _, shutdown := range s.closed {
		errs = append(errs, shutdown())
	}
	s.serve.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(append(errs, s.errors...)...)
}

func (s *Nameserver) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors = append(s.errors, err)
}

func (s *Nameserver) answer(w dns.ResponseWriter, request *dns.Msg, addr netip.Addr, overTCP bool) {
	if len(request.Question) != 1 {
		return
	}
	q := request.Question[0]
	name := dns.CanonicalName(q.Name)
	s.mu.Lock()
	s.asked[Question{name, dns.TypeToString[q.Qtype], addr, overTCP}]++
	s.mu.Unlock()
	z := s.zone.Load()
	if s.hangs.Load() || contains(z.Silent, name) {
		return
	}
	reply := z.reply(request, overTCP)
	if s.fails.Load() {
		reply = new(dns.Msg).SetRcode(request, dns.RcodeServerFailure)
	}
	_ = w.WriteMsg(reply) // lost, as packets are; who asked may be gone
}

// Serve replaces what the server says.
func (s *Nameserver) Serve(t TB, z Zone) {
	t.Helper()
	parsed, err := parseZone(z)
	if err != nil {
		t.Fatalf("nameserver: %v", err)
	}
	s.zone.Store(parsed)
}

// Hang has the server answer nothing, or as before. It counts all the same.
func (s *Nameserver) Hang(on bool) { s.hangs.Store(on) }

// Fail has the server answer SERVFAIL to everything, or as before.
func (s *Nameserver) Fail(on bool) { s.fails.Store(on) }

// Asked counts the queries so far that match; nil: all.
func (s *Nameserver) Asked(match func(Question) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := 0
	for q, n := range s.asked {
		if match == nil || match(q) {
			sum += n
		}
	}
	return sum
}

// AskedFor counts the queries so far for the name, of every type.
func (s *Nameserver) AskedFor(name string) int {
	return s.Asked(func(q Question) bool { return q.Name == dns.CanonicalName(name) })
}

// ToPort53 matches packets to DNS servers.
func ToPort53(p Packet) bool {
	return p.Port == 53 && (p.Protocol == unix.IPPROTO_UDP || p.Protocol == unix.IPPROTO_TCP)
}
