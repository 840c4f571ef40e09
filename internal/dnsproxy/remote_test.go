// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// TestRemoteIsAskedOnce holds that a control plane hears once what an attachment asks more than once at a time, and that
// neither other attachments nor other questions are told the same.
func TestRemoteIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		w := bare(t, never(t))
		w.kernel.set(t, index, byProxy)
		w.kernel.set(t, 20, byProxy)
		w.kernel.mu.Lock()
		w.kernel.chains[20][0].ID = "another"
		w.kernel.mu.Unlock()
		w.Remote = remote(func(_ context.Context, id, name, qtype string) (RemoteAnswer, error) {
			asked.Add(1)
			<-time.After(time.Second)
			if strings.HasPrefix(name, "bad") {
				return RemoteAnswer{}, errors.New("no")
			}
			return RemoteAnswer{Allow: true, Learn: true, Addrs: addrs(map[string]string{"a": "192.0.2.1", "another": "192.0.2.2"}[id])}, nil
		})
		for _, tt := range []struct {
			name, again string
			qtype       uint16
			index       uint32
			rcode       int
			answer      string
		}{
			{"a.example", "A.Example", dns.TypeA, index, 0, "192.0.2.1"},
			{"a.example", "a.example", dns.TypeA, 20, 0, "192.0.2.2"},
			{"b.example", "b.example", dns.TypeA, index, 0, "192.0.2.1"},
			{"a.example", "a.example", dns.TypeAAAA, index, 0, ""},
			{"bad.example", "bad.example", dns.TypeA, index, dns.RcodeServerFailure, ""},
		} {
			var running sync.WaitGroup
			defer running.Wait()
			for i := range 30 {
				running.Go(func() {
					q := packed(t, questionFor([]string{tt.name, tt.again}[i%2], tt.qtype))
					m := new(dns.Msg)
					if err := m.Unpack(w.handle(t.Context(), q, Peer{Index: tt.index}, true)); err != nil || m.Rcode != tt.rcode || strings.Join(rdata(m.Answer), " ") != tt.answer {
						t.Errorf("%+v: %v, %v", tt, m, err)
					}
				})
			}
		}
		synctest.Wait()
		if n := asked.Load(); n != 5 {
			t.Errorf("asked %d times", n)
		}
		<-time.After(2 * time.Second)
		w.handle(t.Context(), packed(t, questionFor("a.example", dns.TypeA)), Peer{Index: index}, true)
		if n := asked.Load(); n != 6 || len(w.remotes.asked) != 0 {
			t.Errorf("asked %d times, one more, and then %d in flight", n, len(w.remotes.asked))
		}
	})
}

// TestRemoteIsAskedAgain holds that who waits for another's question has its own time, and asks itself when the other is gone.
func TestRemoteIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		w := bare(t, never(t))
		w.kernel.set(t, index, byProxy)
		w.Remote = remote(func(ctx context.Context, _, _, _ string) (RemoteAnswer, error) {
			if asked.Add(1) == 1 {
				<-ctx.Done()
				return RemoteAnswer{}, ctx.Err()
			}
			return RemoteAnswer{Allow: true, Addrs: addrs("192.0.2.1")}, nil
		})
		q := packed(t, questionFor("a.example", dns.TypeA))
		gone, leave := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		running.Go(func() { w.handle(gone, q, Peer{Index: index}, true) })
		synctest.Wait()
		running.Go(func() {
			m := new(dns.Msg)
			if err := m.Unpack(w.handle(t.Context(), q, Peer{Index: index}, true)); err != nil || len(m.Answer) != 1 {
				t.Errorf("%v, %v", m, err)
			}
		})
		synctest.Wait()
		leave()
		running.Wait()
		w.aside.Wait()
		if n := asked.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}
