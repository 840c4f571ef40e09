// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datagram"
	"github.com/netfence/netfence/policy"
)

// mailbox is a socket of both kinds without any buffers: whoever does not read is waited for, for ever.
type mailbox struct {
	letters chan letter
	calls   chan call
	closed  chan struct{}
	close   func()

	mu      sync.Mutex
	answers map[netip.AddrPort]chan []byte // of who waits for one
}

type letter struct {
	b    []byte
	from Peer
}

type call struct {
	conn net.Conn
	from Peer
}

func newMailbox() *mailbox {
	m := &mailbox{letters: make(chan letter), calls: make(chan call), closed: make(chan struct{}), answers: make(map[netip.AddrPort]chan []byte)}
	m.close = sync.OnceFunc(func() { close(m.closed) })
	return m
}

func (m *mailbox) Watch(_ *datagram.Poller, ready func() bool) error {
	go func() {
		for ready() {
		}
	}()
	return nil
}

func (m *mailbox) ReadQueries(each func([]byte, Peer)) (bool, error) {
	select {
	case l := <-m.letters:
		each(l.b, l.from)
		return false, nil
	case <-m.closed:
		return false, net.ErrClosed
	}
}

func (m *mailbox) WriteAnswers(answers []Answer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range answers {
		if waits := m.answers[a.To.Client]; waits != nil {
			waits <- a.Bytes
		}
	}
	return nil
}

func (m *mailbox) Accept() (net.Conn, Peer, error) {
	select {
	case c := <-m.calls:
		return c.conn, c.from, nil
	case <-m.closed:
		return nil, Peer{}, net.ErrClosed
	}
}

func (m *mailbox) Close() error { m.close(); return nil }

// patient is a connection that no deadline ends.
type patient struct{ net.Conn }

func (patient) SetDeadline(time.Time) error      { return nil }
func (patient) SetReadDeadline(time.Time) error  { return nil }
func (patient) SetWriteDeadline(time.Time) error { return nil }

// dial is a connection of index's.
func (m *mailbox) dial(t testing.TB, index uint32) net.Conn {
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close() })
	m.calls <- call{patient{server}, Peer{Index: index}}
	return client
}

// throng is attachments that are served together: the loud one, and others, which want no more than an answer.
type throng struct {
	*world
	*mailbox
	port atomic.Uint32
}

const (
	loud    = index
	quiet   = index + 1 // under the rules of the loud one
	asks    = index + 2 // in proxy mode
	several = 20        // queries of each other, of each kind
)

func newThrong(t *testing.T, ask asker, loudly policy.Policy, remote Remote) *throng {
	t.Helper()
	g := &throng{world: bare(t, ask, loudly), mailbox: newMailbox()}
	g.Remote, g.Timeout = remote, time.Hour
	g.kernel.set(t, quiet, allowlist("*"))
	g.kernel.set(t, asks, byProxy)
	g.kernel.mu.Lock()
	for i, id := range map[uint32]string{loud: "loud", quiet: "quiet", asks: "asks"} {
		g.kernel.chains[i][0].ID = id
	}
	g.kernel.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := g.Serve(ctx, g.mailbox); err != nil && ctx.Err() == nil { // the other one may close it first
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := g.ServeTCP(ctx, g.mailbox); err != nil && ctx.Err() == nil { // the other one may close it first
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return g
}

// send sends a datagram of an index's; an answer comes to the channel.
func (g *throng) send(t testing.TB, index uint32, name string) (answer chan []byte) {
	t.Helper()
	from := Peer{Index: index, Client: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), uint16(g.port.Add(1)))}
	answer = make(chan []byte, 1)
	g.mailbox.mu.Lock()
	g.answers[from.Client] = answer
	g.mailbox.mu.Unlock()
	g.letters <- letter{packed(t, questionFor(name, dns.TypeA)), from}
	return answer
}

// others shows that the others have their answers, over UDP and over connections, while somebody else waits for ever.
func (g *throng) others(t *testing.T) {
	t.Helper()
	for _, index := range []uint32{quiet, asks} {
		c := &dns.Conn{Conn: g.dial(t, index)}
		for i := range several {
			m := new(dns.Msg)
			if err := m.Unpack(<-g.send(t, index, fmt.Sprintf("u%d.example", i))); err != nil || len(m.Answer) != 1 {
				t.Errorf("%d, over UDP: %v, %v", index, m, err)
			}
			if err := c.WriteMsg(questionFor(fmt.Sprintf("t%d.example", i), dns.TypeA)); err != nil {
				t.Fatal(err)
			}
			if m, err := c.ReadMsg(); err != nil || len(m.Answer) != 1 {
				t.Errorf("%d, over TCP: %v, %v", index, m, err)
			}
		}
	}
}

// await waits for a condition that the test brings about.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so: %s", what)
		}
	}
}

// TestSlowConnections holds that who has all the connections that it may, and all its queries wait for answers to be read,
// has others wait for nothing.
func TestSlowConnections(t *testing.T) {
	g := newThrong(t, answering(t, dns.RcodeSuccess, "$ 60 IN A 192.0.2.1"), allowlist("*"), answers(RemoteAnswer{Allow: true, Addrs: addrs("192.0.2.1")}))
	var held []net.Conn
	for i := range g.MaxConns {
		c := g.dial(t, loud)
		held = append(held, c)
		if i == 0 { // it begins, and goes on some day
			if _, err := c.Write([]byte{0}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for k := range perConn {
			b := packed(t, questionFor(fmt.Sprintf("n%d-%d.example", i, k), dns.TypeA))
			if i*perConn+k >= g.MaxQueries+perConn {
				break // which nobody would read
			}
			if _, err := c.Write(append([]byte{0, byte(len(b))}, b...)); err != nil {
				t.Fatal(err)
			}
		}
	}
	full := func() bool { return g.queries.of(loud) == g.MaxQueries && g.conns.of(loud) == g.MaxConns }
	await(t, "the loud one has all that it may", full)
	for range 100 {
		if n, err := g.dial(t, loud).Read(make([]byte, 1)); n != 0 || err == nil {
			t.Fatalf("one more connection is served: %v", err)
		}
	}
	g.others(t)
	if !full() {
		t.Errorf("%d queries and %d connections are left", g.queries.of(loud), g.conns.of(loud))
	}
	for _, c := range held {
		c.Close()
	}
	await(t, "all is given back", func() bool { return g.queries.of(loud) == 0 && g.conns.of(loud) == 0 })
	g.others(t)
}

// TestHangingControlPlane holds that who asks what a control plane never decides takes its own share there, too.
func TestHangingControlPlane(t *testing.T) {
	var waiting atomic.Int32
	undecided := remote(func(ctx context.Context, id, _, _ string) (RemoteAnswer, error) {
		if id != "loud" {
			return RemoteAnswer{Allow: true, Addrs: addrs("192.0.2.1")}, nil
		}
		waiting.Add(1)
		defer waiting.Add(-1)
		<-ctx.Done()
		return RemoteAnswer{}, errors.New("undecided")
	})
	g := newThrong(t, answering(t, dns.RcodeSuccess, "$ 60 IN A 192.0.2.1"), byProxy, undecided)
	for i := range 2 * g.MaxQueries {
		g.send(t, loud, fmt.Sprintf("n%d.example", i))
	}
	full := func() bool { return g.queries.of(loud) == g.MaxQueries && waiting.Load() == remoteEach }
	await(t, "the loud one has all that it may", full)
	g.others(t)
	if !full() {
		t.Errorf("%d queries are left, of which a control plane is asked %d", g.queries.of(loud), waiting.Load())
	}
	if n := g.Counts("loud").Blocked; n != uint64(g.MaxQueries) {
		t.Errorf("%d queries above the limit", n)
	}
}

// TestHangingStreams holds that who has servers asked over TCP, and waits, leaves connections to them for others.
func TestHangingStreams(t *testing.T) {
	release := make(chan struct{})
	var asked atomic.Int32
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		m := records(t, "$ 60 IN TXT x")(q, network)
		if network == "udp" {
			m.Truncated = true
		} else if q.Question[0].Qtype == dns.TypeMX {
			asked.Add(1)
			<-release
		}
		return m
	})
	w := serve(t, Options{Timeout: time.Minute, TryTimeout: time.Minute, MaxConns: 256}, []*resolver{up}, allowlist("*"))
	t.Cleanup(sync.OnceFunc(func() { close(release) }))
	w.kernel.set(t, quiet, allowlist("*"))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for i := range 2 * streamsPerServer {
		running.Go(func() {
			w.handle(ctx, packed(t, questionFor(fmt.Sprintf("n%d.example", i), dns.TypeMX)), Peer{Index: loud}, true)
		})
	}
	await(t, "the loud one has all that it may", func() bool { return asked.Load() == streamsEach })
	for i := range several {
		reply := w.handle(ctx, packed(t, questionFor(fmt.Sprintf("q%d.example", i), dns.TypeTXT)), Peer{Index: quiet}, true)
		m := new(dns.Msg)
		if err := m.Unpack(reply); err != nil || len(m.Answer) != 1 {
			t.Errorf("%v, %v", m, err)
		}
	}
	if n := asked.Load(); n != streamsEach {
		t.Errorf("%d queries of the loud one are under way over TCP", n)
	}
	cancel()
	running.Wait()
}

// TestPlacesInTurn holds that a place goes to who waits for it longest and may have it, and that none is lost.
func TestPlacesInTurn(t *testing.T) {
	g := gate{each: 2, all: 8}
	for range 2 {
		if !g.enter(1) {
			t.Fatal("no room")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	entered := make(chan uint32)
	var running sync.WaitGroup
	wait := func(ctx context.Context, index uint32, n int) {
		running.Go(func() {
			if g.enterWhenFree(ctx, index) {
				entered <- index
			}
		})
		await(t, "it waits", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.queue) == n })
	}
	wait(ctx, 1, 1) // gives up
	wait(t.Context(), 1, 2)
	wait(t.Context(), 1, 3)
	if !g.enterWhenFree(t.Context(), 2) {
		t.Error("one with enough is in the way of others")
	}
	cancel()
	await(t, "one has given up", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.queue) == 2 })
	g.leave(2) // is nothing to the others
	for range 2 {
		g.leave(1)
		if got := <-entered; got != 1 {
			t.Errorf("a place goes to %d", got)
		}
	}
	running.Wait()
	for range 2 {
		g.leave(1)
	}
	if g.total != 0 || len(g.by) != 0 || len(g.queue) != 0 || len(g.waits) != 0 {
		t.Errorf("%d places are taken by %v, %d wait, %v", g.total, g.by, len(g.queue), g.waits)
	}
}

// TestNobodyWaitsForAFreePlace holds that whoever waits may have no place, however others come and go.
func TestNobodyWaitsForAFreePlace(t *testing.T) {
	g := gate{each: 3, all: 8}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 3000 {
		index := rand.Uint32N(5)
		switch {
		case g.of(index) > 0 && rand.IntN(2) == 0:
			g.leave(index)
		case rand.IntN(2) == 0:
			g.enter(index)
		case !g.enter(index):
			g.mu.Lock()
			before := len(g.queue)
			g.mu.Unlock()
			running.Go(func() { g.enterWhenFree(ctx, index) })
			await(t, "it waits", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.queue) > before })
		}
		g.mu.Lock()
		for _, w := range g.queue {
			if g.by[w.index] < min(g.each, g.all-g.total) {
				t.Fatalf("%d waits, places are taken by %v", w.index, g.by)
			}
		}
		g.mu.Unlock()
	}
	cancel()
	running.Wait()
	if len(g.queue) != 0 || len(g.waits) != 0 {
		t.Errorf("%d wait, %v", len(g.queue), g.waits)
	}
}
