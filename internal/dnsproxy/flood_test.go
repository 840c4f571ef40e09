// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
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

func (c shared) ReadQueries(each func([]byte, Peer)) error {
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
	w.kernel.set(t, index+1, allowlist("*"))
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	loud := dial(t, "udp", pc.LocalAddr().String()).(*net.UDPConn)
	quiet := &dns.Conn{Conn: dial(t, "udp", pc.LocalAddr().String())}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	socket := shared{newDatagrams(t, pc, index), netip.MustParseAddrPort(loud.LocalAddr().String())}
	running.Go(func() {
		if err := w.Serve(ctx, socket); err != nil {
			t.Error(err)
		}
	})
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
		q := questionFor(fmt.Sprintf("q%d.example", i), dns.TypeA)
		for { // what finds the socket full is sent again, as resolvers do
			if err := quiet.WriteMsg(q); err != nil {
				t.Fatal(err)
			}
			if err := quiet.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			m, err := quiet.ReadMsg()
			if err == nil && m.Id == q.Id && len(m.Answer) == 1 {
				break
			}
			if lost++; lost > 25 {
				t.Fatalf("query %d: %v, %v", i, m, err)
			}
		}
		if n := w.queries.of(index + 1); n > most {
			t.Fatalf("%d queries in flight", n)
		}
	}
	cancel()
	running.Wait()
}
