// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func dial(t testing.TB, network, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestStream holds that one connection carries many queries, split and joined
// in any way, and that what is no query ends only itself.
func TestStream(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{}, []*resolver{up}, allowlist("*"))
	c := dial(t, "tcp", w.addr)
	var out []byte
	want := map[uint16]bool{}
	for id := range uint16(50) {
		q := questionFor("a.example", dns.TypeA)
		q.Id = id
		want[id] = true
		b := packed(t, q)
		out = append(append(out, byte(len(b)>>8), byte(len(b))), b...)
	}
	broken := packed(t, questionFor("a.example", dns.TypeA))[:20]
	broken[0], broken[1] = 1, 0
	want[256] = true
	out = append(append(out, 0, 20), broken...)
	out = append(out, 0, 0) // an empty message deserves no answer
	for _, part := range [][]byte{out[:1], out[1:3], out[3:100], out[100:]} {
		if _, err := c.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil { // what was asked is answered all the same
		t.Fatal(err)
	}
	in := &dns.Conn{Conn: c}
	for range len(want) {
		m, err := in.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if !want[m.Id] {
			t.Errorf("answered twice or unasked: %v", m)
		}
		delete(want, m.Id)
	}
	if _, err := in.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection goes on: %v", err)
	}
}

// TestConnections holds that idle, slow, greedy and superfluous connections end.
func TestConnections(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{IdleTimeout: 100 * time.Millisecond, MaxConns: 3}, []*resolver{up}, allowlist("*"))
	idle, slow, greedy := dial(t, "tcp", w.addr), dial(t, "tcp", w.addr), dial(t, "tcp", w.addr)
	for c, b := range map[net.Conn][]byte{slow: {0, 40, 1}, greedy: {0xff, 0xff, 1}} {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]net.Conn{"idle": idle, "slow": slow, "greedy": greedy} {
		// A close with data unread is a reset.
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	w = serve(t, Options{MaxConns: 1}, []*resolver{up}, allowlist("*"))
	first := &dns.Conn{Conn: dial(t, "tcp", w.addr)}
	if err := first.WriteMsg(questionFor("a.example", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.ReadMsg(); err != nil {
		t.Fatal(err)
	}
	if n, err := dial(t, "tcp", w.addr).Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a second connection is served: %v", err)
	}
	first.Close()
	for { // its place is free once the server has seen it
		c := &dns.Conn{Conn: dial(t, "tcp", w.addr)}
		if err := c.WriteMsg(questionFor("a.example", dns.TypeA)); err == nil {
			if _, err = c.ReadMsg(); err == nil {
				break
			}
		}
		c.Close()
	}
}

// TestAbandonedQueries holds that queries whose connection was reset have their places until they are done: servers are
// still asked for them.
func TestAbandonedQueries(t *testing.T) {
	up := resolve(t, func(*dns.Msg, string) *dns.Msg { return nil })
	const most = 4
	w := serve(t, Options{MaxQueries: most, Timeout: time.Minute}, []*resolver{up}, allowlist("*"))
	under := func() int {
		w.up.mu.Lock()
		defer w.up.mu.Unlock()
		return len(w.up.quests)
	}
	queued := func() bool {
		w.queries.mu.Lock()
		defer w.queries.mu.Unlock()
		return len(w.queries.queue) > 0
	}
	ask := func(first int) *net.TCPConn {
		c := dial(t, "tcp", w.addr)
		for i := range most {
			if err := (&dns.Conn{Conn: c}).WriteMsg(questionFor(fmt.Sprintf("n%d.example", first+i), dns.TypeA)); err != nil {
				t.Fatal(err)
			}
		}
		return c.(*net.TCPConn)
	}
	c := ask(0)
	await(t, "all are under way", func() bool { return under() == most })
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	await(t, "the connection is gone", func() bool { return w.conns.of(index) == 0 })
	ask(most)
	await(t, "another waits for a place", func() bool {
		if n := under(); n > most {
			t.Fatalf("%d queries are under way, at most %d may be", n, most)
		}
		return queued()
	})
}

// TestConnectionOfAnotherTime holds that a connection ends with the attachment
// that it came from: its index may be somebody else's by then.
func TestConnectionOfAnotherTime(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{}, []*resolver{up}, allowlist("*"))
	c := &dns.Conn{Conn: dial(t, "tcp", w.addr)}
	exchange := func() error {
		if err := c.WriteMsg(questionFor("a.example", dns.TypeA)); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	if err := exchange(); err != nil {
		t.Fatal(err)
	}
	w.kernel.mu.Lock()
	chain := slices.Clone(w.kernel.chains[index])
	chain[0].ID = "somebody else"
	w.kernel.chains[index] = chain
	w.kernel.mu.Unlock()
	if err := exchange(); err == nil {
		t.Error("answered as somebody else")
	}
	if taught := w.kernel.taught(); len(taught) != 1 {
		t.Errorf("taught %+v", taught)
	}
}
