// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// watching is a Poller and what it did.
type watching struct {
	*Poller
	did  chan string
	more chan struct{} // what there is to be done beside reading
}

func watch() *watching {
	w := &watching{did: make(chan string, 100), more: make(chan struct{}, 10)}
	w.Poller = NewPoller(func() { w.did <- "begin" }, func() (again bool) {
		select {
		case <-w.more:
			again = true
		default:
		}
		w.did <- "end"
		return again
	})
	return w
}

// next is what is done next.
func (w *watching) next(t *testing.T, want ...string) {
	t.Helper()
	for _, one := range want {
		select {
		case did := <-w.did:
			if did != one {
				t.Fatalf("%q, want %q of %q", did, one, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing, want %q of %q", one, want)
		}
	}
}

func say(t *testing.T, to netip.AddrPort, text string) {
	t.Helper()
	c, err := net.Dial("udp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// TestPoller holds that a socket is read when there is something, and not after it was
// given up or closed, and that the goroutine ends with the last one.
func TestPoller(t *testing.T) {
	w := watch()
	a, toA := listen(t, "127.0.0.1:0")
	b, toB := listen(t, "127.0.0.1:0")
	read := func(c *Conn, name string) func() bool {
		return func() bool {
			in := New(1, 8, 0, false)
			n, err := in.Receive(c)
			data, _ := in.Data(0)
			w.did <- fmt.Sprintf("%s: %d %s %v", name, n, data, err)
			return string(data) != "stop"
		}
	}
	for range 2 { // the second time with another goroutine
		say(t, toA, "0")
		for _, err := range []error{a.Watch(w.Poller, read(a, "a")), b.Watch(w.Poller, read(b, "b"))} {
			if err != nil {
				t.Fatal(err)
			}
		}
		w.next(t, "begin", "a: 1 0 <nil>", "end")
		w.more <- struct{}{}
		say(t, toB, "1")
		w.next(t, "begin", "b: 1 1 <nil>", "end", "begin", "end") // it does not wait for another datagram
		say(t, toA, "stop")
		w.next(t, "begin", "a: 1 stop <nil>", "end")
		say(t, toB, "stop")
		w.next(t, "begin", "b: 1 stop <nil>", "end")
		w.Wait()
	}
	if err := a.Watch(w.Poller, read(a, "a")); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	w.Wait()
	for _, err := range []error{a.Close(), a.Watch(w.Poller, read(a, "a"))} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
}

// TestPollerAtOnce holds that sockets may come and go, be closed and said something
// at any time, under the race detector.
func TestPollerAtOnce(t *testing.T) {
	p := NewPoller(func() {}, func() bool { return false })
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				c, to := listen(t, "127.0.0.1:0")
				got := make(chan string, 1)
				in := New(1, 8, 0, false)
				err := c.Watch(p, func() bool {
					n, err := in.Receive(c)
					if data, _ := in.Data(0); err == nil && n == 1 {
						got <- string(data)
						return false
					}
					return err == nil
				})
				if err != nil {
					t.Error(err)
					return
				}
				say(t, to, "hello")
				if text := <-got; text != "hello" {
					t.Errorf("%q", text)
				}
				c.Close()
			}
		})
	}
	all.Wait()
	p.Wait()
}

// TestLostWithoutRoom holds that who sends does not wait for room.
func TestLostWithoutRoom(t *testing.T) {
	out, _ := listen(t, "127.0.0.1:0")
	var sizes []int
	for _, size := range []int{1, 60_000} {
		in, to := listen(t, "127.0.0.1:0")
		b := New(64, size, 0, false)
		for range 100 {
			for b.Add(make([]byte, size), to, nil) {
			}
			b.Send(out, unsendable(t))
		}
		received := New(64, 8, 0, false)
		n := 0
		for {
			some, err := received.Receive(in)
			if err != nil {
				t.Fatal(err)
			}
			if some == 0 {
				break
			}
			n += some
		}
		sizes = append(sizes, n)
	}
	if slices.Contains(sizes, 0) || slices.Contains(sizes, 6400) {
		t.Errorf("%d of 6400 arrived", sizes)
	}
}
