// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// order is a socket that remembers whom it sent answers to.
type order struct {
	PacketConn
	mu  sync.Mutex
	all []uint32
}

func (o *order) WriteAnswers(answers []Answer) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range answers {
		o.all = append(o.all, a.To.Index)
	}
	return nil
}

// of is how many it sent to one.
func (o *order) of(index uint32) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, to := range o.all {
		if to == index {
			n++
		}
	}
	return n
}

// arrive has a query come through c.
func (w *world) arrive(t *testing.T, c PacketConn, index uint32, name string) {
	t.Helper()
	from := Peer{Index: index, Client: netip.MustParseAddrPort("192.0.2.9:999")}
	j := w.admit(t.Context(), c, packed(t, questionFor(name, dns.TypeA)), from)
	if j == nil {
		t.Fatal("no room")
	}
	w.line.add(j)
}

// TestTurns holds that whoever has much to be done has others wait for turns of it, not for all of it, whether the answers
// are at hand or are asked for.
func TestTurns(t *testing.T) {
	for _, kept := range []int{0, 1 << 20} {
		w := bare(t, answering(t, dns.RcodeSuccess, "$ 300 A 192.0.2.1"))
		w.cache = newCache(kept, 0)
		w.line.workers = 1
		const loud, many, few, others = 100, 200, 20, 3
		for i := range uint32(others + 1) {
			w.kernel.set(t, loud+i, allowlist("*"))
		}
		started, held := make(chan struct{}), make(chan struct{})
		var once sync.Once
		w.kernel.refusing(func() error {
			once.Do(func() {
				close(started)
				<-held
			})
			return nil
		})
		var got order
		w.arrive(t, &got, loud, "n.example")
		<-started
		for i := range many {
			w.arrive(t, &got, loud, fmt.Sprintf("n%d.example", i%10))
		}
		for i := range uint32(others) {
			for k := range few {
				w.arrive(t, &got, loud+1+i, fmt.Sprintf("n%d.example", k%10))
			}
		}
		close(held)
		w.line.wait()
		answered := map[uint32]int{}
		for _, index := range got.all {
			// What is asked for waits twice: to be asked for, and when it has come.
			if n := answered[index]; index != loud && answered[loud] > 1+2*turn*(n/turn+1) {
				t.Errorf("%d of the loud one's came before answer %d of %d", answered[loud], n, index)
			}
			answered[index]++
		}
		if answered[loud] != many+1 || len(got.all) != many+1+others*few || w.queries.total != 0 || len(w.line.lanes) != 0 || w.line.waiting != 0 {
			t.Errorf("answered %v, %d in flight, %d lanes", answered, w.queries.total, len(w.line.lanes))
		}
	}
}

// TestLongTurns holds that jobs which take long are not waited for a whole turn of them, and are done in their order all
// the same.
func TestLongTurns(t *testing.T) {
	l := newLine(func(*hand) {})
	l.workers = 1
	const slow, quick, many = 100, 101, turn
	var order []string
	add := func(place uint32, what string, do func()) {
		l.add(&job{ctx: t.Context(), place: place, next: func(*job, *hand) bool {
			order = append(order, what)
			do()
			return true
		}})
	}
	lasts := func() {
		for began := time.Now(); time.Since(began) <= 2*turnTime; {
			runtime.Gosched()
		}
	}
	held := make(chan struct{})
	add(slow, "first", func() { <-held })
	var want []string
	for i := range many {
		want = append(want, fmt.Sprint(i))
		add(slow, want[i], lasts)
	}
	add(quick, "quick", func() {})
	close(held)
	l.wait()
	at := slices.Index(order, "quick")
	if at < 0 || at > 2 {
		t.Errorf("done in the order %v", order)
	}
	if got := slices.Delete(order, at, at+1)[1:]; !slices.Equal(got, want) || len(l.lanes) != 0 {
		t.Errorf("done in the order %v, %d lanes are left", got, len(l.lanes))
	}
}

// TestBusy holds that who has to wait for an attachment whose policy is being replaced keeps nobody else waiting, and
// that what arrives for it meanwhile is answered afterwards.
func TestBusy(t *testing.T) {
	w := bare(t, answering(t, dns.RcodeSuccess, "$ 300 A 192.0.2.1"))
	w.line.workers = 1
	const busy, free = 100, 101
	w.kernel.set(t, busy, allowlist("*"))
	w.kernel.set(t, free, allowlist("*"))
	held := make(chan struct{})
	w.kernel.replacing(busy, held)
	var got order
	for i := range 2 * turn {
		w.arrive(t, &got, busy, fmt.Sprintf("n%d.example", i))
	}
	for i := range 2 * turn {
		w.arrive(t, &got, free, fmt.Sprintf("n%d.example", i))
	}
	w.line.mu.Lock()
	for w.line.working > 0 {
		w.line.mu.Unlock()
		<-time.After(time.Millisecond)
		w.line.mu.Lock()
	}
	w.line.mu.Unlock()
	if got := got.of(busy); got != 0 {
		t.Errorf("%d answers though the kernel holds nothing", got)
	}
	if got := got.of(free); got != 2*turn {
		t.Errorf("%d of %d were answered beside one that waits", got, 2*turn)
	}
	close(held)
	w.line.wait()
	if got := got.of(busy); got != 2*turn || len(w.line.lanes) != 0 || w.line.apart != 0 || w.queries.total != 0 {
		t.Errorf("%d of %d were answered in the end; %d lanes, %d apart, %d in flight", got, 2*turn, len(w.line.lanes), w.line.apart, w.queries.total)
	}
}
