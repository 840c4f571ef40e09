// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/testenv"
)

// A daemon that has just started knows its attachments one after the other. A query waits for its own, and no longer.
func TestQueriesWaitForTheirAttachment(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 198.51.100.1"))
	settled := make(chan struct{})
	w := serve(t, Options{Settled: settled}, []*resolver{up})
	ask := func(network string) <-chan *dns.Msg {
		answer := make(chan *dns.Msg, 1)
		go func() {
			c := dns.Client{Net: network, Timeout: 10 * time.Second}
			m, _, err := c.Exchange(questionFor("a.example", dns.TypeA), w.addr)
			if err != nil {
				t.Error(err)
			}
			answer <- m
		}()
		return answer
	}
	inFlight := func() int {
		w.queries.mu.Lock()
		defer w.queries.mu.Unlock()
		return w.queries.total
	}
	expect := func(answer <-chan *dns.Msg, rcode int) {
		t.Helper()
		if m := <-answer; m == nil || m.Rcode != rcode {
			t.Errorf("answer %v, want %s", m, dns.RcodeToString[rcode])
		}
	}

	waiting, connected := ask("udp"), ask("tcp")
	testenv.Eventually(t, "the query to wait", func() bool { return inFlight() == 1 })
	select {
	case m := <-waiting:
		t.Fatalf("answered before its attachment is known: %v", m)
	default:
	}
	w.kernel.set(t, index, allowlist("a.example"))
	expect(waiting, dns.RcodeSuccess)
	select {
	case m := <-connected:
		t.Fatalf("a connection is answered before all are known: %v", m)
	default:
	}

	w.kernel.forget(index)
	waiting = ask("udp")
	testenv.Eventually(t, "the query to wait", func() bool { return inFlight() == 1 })
	close(settled)
	expect(waiting, dns.RcodeServerFailure) // it is nobody's
	expect(connected, dns.RcodeServerFailure)
	expect(ask("udp"), dns.RcodeServerFailure)

	w.kernel.set(t, index, allowlist("a.example"))
	expect(ask("tcp"), dns.RcodeSuccess)
}

// While nothing is known a query waits for as long as any may take, and then fails.
func TestQueriesWaitNoLongerThanTheirTime(t *testing.T) {
	w := serve(t, Options{Settled: make(chan struct{}), Timeout: 100 * time.Millisecond}, nil)
	c := dns.Client{Timeout: 10 * time.Second}
	m, _, err := c.Exchange(questionFor("a.example", dns.TypeA), w.addr)
	if err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v, %v", m, err)
	}
}
