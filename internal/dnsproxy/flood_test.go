// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// shared is one socket for two attachments: the client at loud's address is one
// of them, everybody else the other.
type shared struct {
	datagrams
	loud netip.AddrPort
}

func (c shared) ReadQueries(each func([]byte, Peer)) (bool, error) {
	return c.datagrams.ReadQueries(func(b []byte, from Peer) {
		if from.Client == c.loud {
			from.Index++
		}
		each(b, from)
	})
}

func (g *gate) of(index uint32) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.by[index]
}

// floodable serves a socket for two attachments: one asks through loud, the other through quiet.
func floodable(t *testing.T, w *world) (ctx context.Context, loud *net.UDPConn, quiet *dns.Conn, stop func()) {
	t.Helper()
	w.kernel.set(t, index+1, allowlist("*"))
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	loud = dial(t, "udp", pc.LocalAddr().String()).(*net.UDPConn)
	quiet = &dns.Conn{Conn: dial(t, "udp", pc.LocalAddr().String())}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	socket := shared{newDatagrams(t, pc, index), netip.MustParseAddrPort(loud.LocalAddr().String())}
	running.Go(func() {
		if err := w.Serve(ctx, socket); err != nil {
			t.Error(err)
		}
	})
	return ctx, loud, quiet, func() { cancel(); running.Wait() }
}

// answered reports whether there was an answer to one query within a second.
func answered(t *testing.T, c *dns.Conn, q *dns.Msg) bool {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := c.ReadMsg()
		if err != nil {
			return false
		}
		if m.Id == q.Id {
			return len(m.Answer) == 1
		}
	}
}

// TestFloodOfLargeAnswers holds that an attachment that asks for what takes long to answer, time and again, does not
// have others' queries find no room in the socket.
func TestFloodOfLargeAnswers(t *testing.T) {
	var large []string
	for i := range 2000 {
		large = append(large, fmt.Sprintf("$ 600 IN A 192.0.%d.%d", i/250, i%250))
	}
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		if !strings.EqualFold(q.Question[0].Name, "large.example.") {
			return records(t, "$ 60 IN A 192.0.2.1")(q, network)
		}
		m := records(t, large...)(q, network)
		m.Compress = true
		if network == "udp" {
			m.Truncate(dns.MinMsgSize)
		}
		return m
	})
	w := serve(t, Options{CacheBytes: 32 << 20}, []*resolver{up}, allowlist("*"))
	ctx, loud, quiet, stop := floodable(t, w)
	var flood sync.WaitGroup
	query := packed(t, questionFor("large.example", dns.TypeA))
	flood.Go(func() {
		for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
			for range 20 {
				_, _ = loud.Write(query) // to a socket that is full, or closed in the end
			}
		}
	})
	for w.CacheStats().Hits < 100 {
		<-time.After(time.Millisecond)
	}
	lost := 0 // where the socket has no room
	for i := range 10 {
		for !answered(t, quiet, questionFor(fmt.Sprintf("q%d.example", i), dns.TypeA)) {
			if lost++; lost > 25 {
				t.Fatalf("%d queries of another had no answer", lost)
			}
		}
	}
	stop()
	flood.Wait()
}

// TestFlood holds that an attachment that asks as fast as it can, for names that
// take a server for ever and others that do not, neither has more queries in flight than it may nor
// keeps another's from being answered.
func TestFlood(t *testing.T) {
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		if q.Question[0].Qtype == dns.TypeTXT {
			return nil
		}
		return records(t, "$ 60 IN A 192.0.2.1")(q, network)
	})
	const most = 64
	w := serve(t, Options{MaxQueries: most, TryTimeout: time.Minute, Timeout: time.Minute}, []*resolver{up}, allowlist("*"))
	ctx, loud, quiet, stop := floodable(t, w)
	var running sync.WaitGroup
	running.Go(func() {
		q := questionFor("a.example", dns.TypeTXT)
		for i := 0; ctx.Err() == nil; i++ {
			q.Question[0].Name = fmt.Sprintf("n%d.example.", i)
			q.Question[0].Qtype = []uint16{dns.TypeTXT, dns.TypeA}[i%2] // some are answered, and make room for others
			_, _ = loud.Write(packed(t, q))                             // to a socket that is full, or closed in the end
		}
	})
	for w.queries.of(index+1) < most {
		<-time.After(time.Millisecond)
	}
	lost := 0
	for i := range 50 {
		// What finds the socket full is sent again, as resolvers do.
		for !answered(t, quiet, questionFor(fmt.Sprintf("q%d.example", i), dns.TypeA)) {
			if lost++; lost > 25 {
				t.Fatalf("query %d of 50: %d had no answer", i, lost)
			}
		}
		if n := w.queries.of(index + 1); n > most {
			t.Fatalf("%d queries in flight", n)
		}
	}
	stop()
	running.Wait()
}
