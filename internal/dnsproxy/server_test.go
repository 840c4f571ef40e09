// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datagram"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

func TestOptions(t *testing.T) {
	servers := func() ([]netip.AddrPort, error) { return nil, nil }
	for _, o := range []Options{
		{}, {Kernel: &kernel{}}, {Upstreams: servers},
		{Kernel: &kernel{}, Upstreams: servers, MinTTL: 2 * time.Hour},
	} {
		if s, err := New(o); err == nil {
			t.Errorf("New(%+v) = %v", o, s)
		}
	}
}

// TestLearnFirst holds that no answer leaves before the kernel holds its
// addresses, over UDP and TCP, for many clients at once.
func TestLearnFirst(t *testing.T) {
	var n atomic.Uint32
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		i := n.Add(1)
		return records(t, fmt.Sprintf("$ 60 IN A 198.51.%d.%d", i>>8, i&0xff))(q, network)
	})
	w := serve(t, Options{}, []*resolver{up}, allowlist("*.example"))
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			network := "udp"
			if i%2 == 1 {
				network = "tcp"
			}
			for j := range 50 {
				c := dns.Client{Net: network, Timeout: 10 * time.Second}
				m, _, err := c.Exchange(questionFor(fmt.Sprintf("n%d-%d.example", i, j), dns.TypeA), w.addr)
				if err != nil || len(m.Answer) != 1 {
					t.Errorf("%v, %v", m, err)
					return
				}
				addr, _ := netip.AddrFromSlice(m.Answer[0].(*dns.A).A.To4())
				w.kernel.mu.Lock()
				if !w.kernel.learned[addr] {
					t.Errorf("%v was answered before it was learned", addr)
				}
				w.kernel.mu.Unlock()
			}
		})
	}
	running.Wait()
	if c := w.Counts("a"); c != (Counts{Allowed: 400}) {
		t.Errorf("counts: %+v", c)
	}
}

func TestNotLearned(t *testing.T) {
	for _, tt := range []struct {
		err             error
		text            string
		whose, incident string
	}{
		{&datapath.LimitError{Attachment: "b", Limit: "learned", Max: 3}, "limits.learned is reached", "b", "learned_limit"},
		{fmt.Errorf("learn: %w", &datapath.LimitError{Attachment: "a", Limit: "names", Max: 3}), "limits.names is reached", "a", "names_limit"},
		{fmt.Errorf("names: %w", datapath.ErrFull), "no room is left for learned addresses", "a", "learned_full"},
		{errors.New("map update: no memory"), "the addresses could not be learned", "a", "learn_failed"},
	} {
		up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
		w := serve(t, Options{}, []*resolver{up}, allowlist("*"), allowlist("*"))
		w.kernel.refusing(func() error { return tt.err })
		for range 2 {
			m := w.ask(t, "a.example", dns.TypeA)
			if _, text := explained(m); m.Rcode != dns.RcodeServerFailure || len(m.Answer) != 0 || text != tt.text {
				t.Errorf("answer: %v", m)
			}
		}
		incidents := 0
		for _, e := range w.seen() {
			if e.Decision != nil && (e.Decision.Allowed || len(e.Decision.Learned) > 0) {
				t.Errorf("decision: %+v", e.Decision)
			}
			if e.Incident != nil {
				incidents++
				if e.Incident.Kind != tt.incident || e.Attachment != tt.whose {
					t.Errorf("incident: %+v", e)
				}
			}
		}
		if incidents != 1 {
			t.Errorf("%d incidents of one kind in a minute", incidents)
		}
	}
}

// TestStale holds that a query whose policy changed under it is decided anew,
// by the new policy, without asking upstream twice.
func TestStale(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN HTTPS 1 . ipv4hint=192.0.2.1,10.0.0.1"))
	w := unhurried(t, Options{}, []*resolver{up}, allowlist("*"))
	var tries atomic.Int32
	change := func(p policy.Policy) {
		tries.Store(0)
		w.kernel.refusing(func() error {
			if tries.Add(1) > 1 {
				return nil
			}
			w.kernel.set(t, index, p)
			return fmt.Errorf("attachment a: %w", datapath.ErrStale)
		})
	}
	private := allowlist("a.example")
	private.DNS.Allow[0].Private = true
	change(private)
	if m := w.ask(t, "a.example", dns.TypeHTTPS); !slices.Equal(rdata(m.Answer), []string{`1 . ipv4hint="192.0.2.1,10.0.0.1"`}) {
		t.Errorf("answer: %v", m)
	}
	if taught := w.kernel.taught(); len(taught) != 1 || !taught[0].Grant.Private || len(up.queries()) != 1 {
		t.Errorf("taught %+v after %d queries", taught, len(up.queries()))
	}
	change(denylist("a.example"))
	if m := w.ask(t, "a.example", dns.TypeHTTPS); m.Rcode != dns.RcodeNameError || tries.Load() != 1 {
		t.Errorf("after a deny rule: %v", m)
	}

	w.kernel.set(t, index, allowlist("*"))
	w.kernel.refusing(func() error { return datapath.ErrStale })
	m := w.ask(t, "b.example", dns.TypeHTTPS)
	if _, text := explained(m); m.Rcode != dns.RcodeServerFailure || text != "the policy kept changing" {
		t.Errorf("always stale: %v", m)
	}
	if c := w.Counts("a"); c != (Counts{Allowed: 1, Blocked: 2}) {
		t.Errorf("counts: %+v", c)
	}
}

// TestFull holds that an attachment above its limit is not answered over UDP
// and waits over TCP, and that another is served meanwhile.
func TestFull(t *testing.T) {
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	reached := make(chan struct{}, 9)
	up := resolve(t, func(q *dns.Msg, network string) *dns.Msg {
		if q.Question[0].Qtype == dns.TypeTXT {
			reached <- struct{}{}
			<-held
		}
		return records(t, "$ 60 IN A 192.0.2.1")(q, network)
	})
	t.Cleanup(release)
	w := serve(t, Options{MaxQueries: 2, TryTimeout: time.Minute, Timeout: time.Minute}, []*resolver{up}, allowlist("*"))
	w.kernel.set(t, index+1, allowlist("*"))

	c := &dns.Conn{Conn: dial(t, "udp", w.addr)}
	for _, name := range []string{"slow.example", "slower.example"} {
		if err := c.WriteMsg(questionFor(name, dns.TypeTXT)); err != nil {
			t.Fatal(err)
		}
		<-reached
	}
	over := questionFor("over.example", dns.TypeA)
	if err := c.WriteMsg(over); err != nil {
		t.Fatal(err)
	}
	for w.Counts("a").Blocked == 0 { // it is dropped, and told
		if err := c.WriteMsg(questionFor("a.example", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	stream := &dns.Conn{Conn: dial(t, "tcp", w.addr)}
	if err := stream.WriteMsg(over); err != nil {
		t.Fatal(err)
	}
	if reply := w.handle(context.Background(), packed(t, over), Peer{Index: index + 1}, false); reply == nil {
		t.Error("the other attachment is not served")
	}
	release()
	if m, err := stream.ReadMsg(); err != nil || m.Id != over.Id || len(m.Answer) != 1 {
		t.Errorf("over TCP: %v, %v", m, err)
	}
	for range 2 {
		if m, err := c.ReadMsg(); err != nil || m.Question[0].Qtype != dns.TypeTXT {
			t.Errorf("over UDP: %v, %v", m, err)
		}
	}
	if e := w.seen()[0]; e.Incident == nil || e.Incident.Kind != "queries_limit" {
		t.Errorf("event: %+v", e)
	}
}

// TestShares holds that however many attachments take what they can get, there
// is soon room for another.
func TestShares(t *testing.T) {
	const floods = 200
	g := gate{each: 256, all: 8192}
	held := make([]int, floods)
	for round := range 300 { // each has an answer, and asks as often as it can
		for i := range held {
			if held[i] > 0 {
				g.leave(uint32(i))
				held[i]--
			}
			for g.enter(uint32(i)) {
				held[i]++
			}
			if held[i] > 256 || g.total > 8192 {
				t.Fatalf("%d places of one, %d of all", held[i], g.total)
			}
		}
		if round >= 256 && !g.enter(floods) {
			t.Fatalf("no room in round %d", round)
		} else if round >= 256 {
			g.leave(floods)
		}
	}
	for i, n := range held {
		for range n {
			g.leave(uint32(i))
		}
	}
	if g.total != 0 || len(g.by) != 0 {
		t.Errorf("%d places are taken by %v", g.total, g.by)
	}
}

// broken is a socket that fails.
type broken struct {
	err    error
	closed atomic.Bool
	tries  atomic.Int32
}

func (b *broken) Watch(_ *datagram.Poller, ready func() bool) error {
	go ready()
	return nil
}
func (b *broken) ReadQueries(func([]byte, Peer)) (bool, error) { b.tries.Add(1); return false, b.err }
func (b *broken) WriteAnswers([]Answer) error                  { return b.err }
func (b *broken) Accept() (net.Conn, Peer, error)              { b.tries.Add(1); return nil, Peer{}, b.err }
func (b *broken) Close() error                                 { b.closed.Store(true); return nil }

// piled is a socket that has several batches of queries at once.
type piled struct {
	broken
	batches, read int
	ready         chan func() bool
}

func (p *piled) Watch(_ *datagram.Poller, ready func() bool) error { p.ready <- ready; return nil }

func (p *piled) ReadQueries(func([]byte, Peer)) (more bool, err error) {
	p.read++
	return p.read < p.batches, nil
}

// TestAllThatIsThereIsRead holds that a socket is emptied before anything that it brought is done, but not for ever.
func TestAllThatIsThereIsRead(t *testing.T) {
	w := serve(t, Options{}, nil, allowlist("*"))
	for batches, want := range map[int]int{1: 1, 3: 3, 10 * readsMost: readsMost} {
		p := &piled{batches: batches, ready: make(chan func() bool)}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := w.Serve(ctx, p); err != nil {
				t.Error(err)
			}
		})
		if ready := <-p.ready; !ready() || p.read != want {
			t.Errorf("of %d batches %d were read, want %d", batches, p.read, want)
		}
		cancel()
		running.Wait()
	}
}

// TestBrokenSocket holds that a failing socket is tried again, but not for ever.
func TestBrokenSocket(t *testing.T) {
	for _, tt := range []struct {
		err   error
		tries int32
	}{{net.ErrClosed, 1}, {errors.New("too many open files"), 21}} {
		synctest.Test(t, func(t *testing.T) {
			w := bare(t, never(t))
			b := &broken{err: tt.err}
			if err := w.Serve(t.Context(), b); err == nil || b.tries.Load() != tt.tries {
				t.Errorf("%v after %d tries", err, b.tries.Load())
			}
			b = &broken{err: tt.err}
			if err := w.ServeTCP(t.Context(), b); err == nil || b.tries.Load() != tt.tries {
				t.Errorf("%v after %d tries", err, b.tries.Load())
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := w.Serve(ctx, b); err != nil {
				t.Errorf("stopped: %v", err)
			}
			synctest.Wait()
			if !b.closed.Load() {
				t.Error("not closed")
			}
		})
	}
}

// TestMaxAddrs holds that what an answer teaches is bounded, and that the client
// gets no more than that.
func TestMaxAddrs(t *testing.T) {
	var lines []string
	for i := range 2 * maxAddrs {
		lines = append(lines, fmt.Sprintf("$ 60 IN A 198.51.%d.%d", 100+i/200, i%200))
	}
	up := resolve(t, records(t, lines...))
	w := serve(t, Options{}, []*resolver{up}, allowlist("*"))
	m := w.exchangeWith(t, "tcp", questionFor("a.example", dns.TypeA))
	if taught := w.kernel.taught(); len(m.Answer) != maxAddrs || len(taught) != 1 || len(taught[0].Addrs) != maxAddrs {
		t.Errorf("%d in the answer, taught %+v", len(m.Answer), taught)
	}
}
