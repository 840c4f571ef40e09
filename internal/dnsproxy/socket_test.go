// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datagram"
)

// counting is a Control that counts sockets by network.
func counting(udp, tcp *atomic.Int32) func(string, string, syscall.RawConn) error {
	return func(network, _ string, _ syscall.RawConn) error {
		if strings.HasPrefix(network, "tcp") {
			tcp.Add(1)
		} else {
			udp.Add(1)
		}
		return nil
	}
}

// TestSocketsAreReplaced holds that no port is used for more than so many
// queries, and that nothing is left open.
func TestSocketsAreReplaced(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	var udp, tcp atomic.Int32
	w := serve(t, Options{Control: counting(&udp, &tcp)}, []*resolver{up}, allowlist("*"))
	const queries = 3000
	var running sync.WaitGroup
	for i := range 4 {
		running.Go(func() {
			for j := range queries / 4 {
				if m := w.ask(t, fmt.Sprintf("n%d-%d.example", i, j), dns.TypeA); len(m.Answer) != 1 {
					t.Errorf("answer: %v", m)
				}
			}
		})
	}
	running.Wait()
	if n := udp.Load(); n < queries/socketQueries || n > queries/(socketQueries/2)+socketsPerServer || tcp.Load() != 0 {
		t.Errorf("%d queries from %d sockets, and %d connections", queries, n, tcp.Load())
	}
	s := w.up.at([]netip.AddrPort{up.addr})[0]
	s.mu.Lock()
	open, flight := slices.Clone(s.open), s.flight
	s.mu.Unlock()
	if len(open) == 0 || len(open) > fewSockets || flight != 0 {
		t.Errorf("%d sockets are open, %d queries in flight", len(open), flight)
	}
	w.up.close()
	for _, k := range open {
		if err := k.conn.Close(); !errors.Is(err, net.ErrClosed) {
			t.Error("a socket is open after the end")
		}
	}
}

// TestManyServers holds that who has ever other servers asked, as a workload may that chooses its own, does not have all
// files kept open, and that what is known of servers does not grow.
func TestManyServers(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(pc.LocalAddr().String()).Port()
	l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := records(t, "$ 60 IN A 192.0.2.1")(q, "")
		m.Truncated = q.Question[0].Qtype == dns.TypeMX && w.LocalAddr().Network() == "udp"
		_ = w.WriteMsg(m) // who misses it says so
	})
	var running sync.WaitGroup
	defer running.Wait()
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		running.Go(func() {
			if err := s.ActivateAndServe(); err != nil {
				t.Error(err)
			}
		})
		<-started
		defer func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
		}()
	}
	sockets := datagram.NewPoller(func() {}, func() bool { return false })
	u := newUpstream(&Options{TryTimeout: time.Second}, sockets)
	const most, servers = 8, 3 * maxServers
	u.most = most
	for i := range servers {
		answered := make(chan *failure, 1)
		server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), port)
		r := &request{Question: dns.Question{Name: "a.example.", Qtype: []uint16{dns.TypeA, dns.TypeMX}[i%2], Qclass: dns.ClassINET}}
		u.ask([]netip.AddrPort{server}, r, time.Now().Add(5*time.Second), func(_ *answer, f *failure) { answered <- f })
		u.flush()
		if f := <-answered; f != nil {
			t.Fatalf("server %d: %+v", i, f)
		}
		u.mu.Lock()
		known, open := len(u.servers), 0
		for _, s := range u.servers {
			s.mu.Lock()
			open += len(s.open) + len(s.streams)
			s.mu.Unlock()
		}
		u.mu.Unlock()
		if open > most || known > maxServers {
			t.Fatalf("after %d servers %d sockets are open, and %d are known", i+1, open, known)
		}
	}
	u.close()
	sockets.Wait()
	if n := u.kept.Load(); n != 0 {
		t.Errorf("%d sockets are counted after the end", n)
	}
}

// TestNothingIsAskedAfterTheEnd holds that who asks again just when all ends has none be asked, and that the end does not
// wait for it.
func TestNothingIsAskedAfterTheEnd(t *testing.T) {
	up := resolve(t, func(*dns.Msg, string) *dns.Msg { return nil })
	sockets := datagram.NewPoller(func() {}, func() bool { return false })
	u := newUpstream(&Options{TryTimeout: time.Second}, sockets)
	r := &request{Question: dns.Question{Name: "a.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
	servers, deadline := []netip.AddrPort{up.addr}, time.Now().Add(time.Second)
	var failed []*failure
	u.ask(servers, r, deadline, func(_ *answer, f *failure) {
		failed = append(failed, f)
		u.ask(servers, r, deadline, func(_ *answer, f *failure) { failed = append(failed, f) })
	})
	u.flush()
	u.close()
	sockets.Wait()
	if len(failed) != 2 || failed[0].code != failed[1].code || time.Now().After(deadline) {
		t.Errorf("failed %+v", failed)
	}
}

// held is an upstream that collects n queries and then answers them in any
// order, each twice, the first records of each being what answer says.
func held(t *testing.T, n int, answer func(name string) string) (r *resolver, ports func() map[uint16]map[uint16]int) {
	t.Helper()
	pc, l := samePort(t)
	l.Close()
	type query struct {
		m    *dns.Msg
		from net.Addr
	}
	var mu sync.Mutex
	seen := map[uint16]map[uint16]int{}
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, dns.MaxMsgSize)
		var all []query
		for {
			size, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q := query{new(dns.Msg), from}
			if err := q.m.Unpack(buf[:size]); err != nil {
				t.Error(err)
				return
			}
			port := netip.MustParseAddrPort(from.String()).Port()
			mu.Lock()
			if seen[port] == nil {
				seen[port] = map[uint16]int{}
			}
			seen[port][binary.BigEndian.Uint16(buf)]++
			mu.Unlock()
			if all = append(all, q); len(all) < n {
				continue
			}
			rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			for _, q := range slices.Concat(all, all) {
				if _, err := pc.WriteTo(packed(t, records(t, answer(strings.ToLower(q.m.Question[0].Name)))(q.m, "udp")), q.from); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			}
			all = nil
		}
	})
	t.Cleanup(func() { pc.Close(); running.Wait() })
	return &resolver{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}, func() map[uint16]map[uint16]int {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
}

// TestInFlight holds that many queries are in flight on few sockets, no two of
// one socket with one id, and that each gets its own answer, in whatever order
// and however often they come.
func TestInFlight(t *testing.T) {
	const n = 200
	addr := func(name string) string { // n17.example. → 198.51.100.17
		var i int
		if _, err := fmt.Sscanf(name, "n%d.", &i); err != nil {
			t.Error(err)
		}
		return fmt.Sprintf("198.51.100.%d", i)
	}
	up, ports := held(t, n, func(name string) string { return "$ 60 IN A " + addr(name) })
	w := serve(t, Options{TryTimeout: 10 * time.Second, Timeout: 10 * time.Second}, []*resolver{up}, allowlist("*"))
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			name := fmt.Sprintf("n%d.example.", i)
			if m := w.ask(t, name, dns.TypeA); !slices.Equal(rdata(m.Answer), []string{addr(name)}) {
				t.Errorf("%s: %v", name, m)
			}
		})
	}
	running.Wait()
	most, queries := 0, 0
	for port, ids := range ports() {
		most = max(most, len(ids))
		for id, times := range ids {
			if queries += times; times > 1 {
				t.Errorf("port %d: id %d stood for %d queries at once", port, id, times)
			}
		}
	}
	if queries != n || len(ports()) < fewSockets || most < 2 {
		t.Errorf("%d queries from %d ports, at most %d from one", queries, len(ports()), most)
	}
}

// TestHedge holds that a server known to be fast is not waited for in full, and
// that its answer counts nevertheless if it comes first.
func TestHedge(t *testing.T) {
	var silent atomic.Bool
	first := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		if silent.Load() {
			return nil
		}
		return records(t, "$ 60 IN A 192.0.2.1")(q, network)
	})
	second := resolve(t, records(t, "$ 60 IN A 192.0.2.2"))
	w := serve(t, Options{TryTimeout: 20 * time.Second, Timeout: time.Minute}, []*resolver{first, second}, allowlist("*"))
	if m := w.ask(t, "a.example", dns.TypeA); !slices.Equal(rdata(m.Answer), []string{"192.0.2.1"}) {
		t.Errorf("answer: %v", m)
	}
	silent.Store(true)
	start := time.Now()
	if m := w.ask(t, "b.example", dns.TypeA); !slices.Equal(rdata(m.Answer), []string{"192.0.2.2"}) || time.Since(start) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(start), m)
	}
	asked := make(chan struct{})
	next := sync.OnceFunc(func() { close(asked) })
	third := resolve(t, func(*dns.Msg, string) *dns.Msg { next(); return nil })
	late := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		<-asked // the next one
		return records(t, "$ 60 IN A 192.0.2.3")(q, network)
	})
	w = serve(t, Options{TryTimeout: 100 * time.Millisecond, Timeout: time.Minute}, []*resolver{late, third}, allowlist("*"))
	if m := w.ask(t, "c.example", dns.TypeA); !slices.Equal(rdata(m.Answer), []string{"192.0.2.3"}) {
		t.Errorf("answer: %v", m)
	}
}

// TestPlainMemory holds that a server that does not speak EDNS is asked with it once.
func TestPlainMemory(t *testing.T) {
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		if q.IsEdns0() != nil {
			return new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
		}
		return records(t, "$ 60 IN A 192.0.2.1")(q, network)
	})
	w := unhurried(t, Options{}, []*resolver{up}, allowlist("*"))
	for range 5 {
		w.ask(t, "a.example", dns.TypeA)
	}
	with := 0
	for _, q := range up.queries() {
		if q.IsEdns0() != nil {
			with++
		}
	}
	if with != 1 || len(up.queries()) != 6 {
		t.Errorf("asked %d times, %d of them with EDNS", len(up.queries()), with)
	}
}

// TestConnectionsAreReused holds that a server whose answers are large is not
// connected to for each, and that it may end a connection at any time.
func TestConnectionsAreReused(t *testing.T) {
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		m := records(t, "$ 60 IN A 192.0.2.1")(q, network)
		m.Truncated = network == "udp"
		return m
	})
	var udp, tcp atomic.Int32
	w := unhurried(t, Options{Control: counting(&udp, &tcp)}, []*resolver{up}, allowlist("*"))
	for range 10 {
		if m := w.ask(t, "a.example", dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("answer: %v", m)
		}
	}
	if tcp.Load() != 1 {
		t.Errorf("%d connections for 10 queries", tcp.Load())
	}
	s := w.up.at([]netip.AddrPort{up.addr})[0]
	s.mu.Lock()
	for _, c := range s.streams {
		// As if the server had ended it, which the next query finds out.
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
			t.Error(err)
		}
	}
	s.mu.Unlock()
	if m := w.ask(t, "a.example", dns.TypeA); len(m.Answer) != 1 || tcp.Load() != 2 {
		t.Errorf("%d connections: %v", tcp.Load(), m)
	}
}
