// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

func TestBackoff(t *testing.T) {
	b := Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}
	tests := []struct {
		failures int
		most     time.Duration
	}{
		{1, 500 * time.Millisecond}, {2, time.Second}, {3, 2 * time.Second}, {6, 16 * time.Second}, {7, 30 * time.Second}, {1000, 30 * time.Second},
	}
	for _, tt := range tests {
		seen := make(map[time.Duration]bool)
		for range 100 {
			got := b.wait(tt.failures)
			if got < tt.most/2 || got > tt.most {
				t.Errorf("after %d failures %v, want half to all of %v", tt.failures, got, tt.most)
			}
			seen[got] = true
		}
		if len(seen) < 50 {
			t.Errorf("after %d failures hardly random: %d of 100 differ", tt.failures, len(seen))
		}
	}
}

// TestDialBackoff: the waits between dials grow, from the first dial on.
func TestDialBackoff(t *testing.T) {
	var dials chan time.Time
	bubble(t, func(h *harness) {
		last, most := <-dials, 500*time.Millisecond
		for range 10 {
			at := <-dials
			if wait := at.Sub(last); wait < most/2 || wait > most {
				t.Errorf("waited %v, want half to all of %v", wait, most)
			}
			last, most = at, min(2*most, 30*time.Second)
		}
		h.stop()
	}, func(o *Options) {
		dials = make(chan time.Time) // belongs to the bubble
		o.Dial = func(ctx context.Context, _ string) (Conn, error) {
			select {
			case dials <- time.Now():
			case <-ctx.Done():
			}
			return nil, errors.New("no route to host")
		}
	})
}

// TestShortStreamsBackOff: a stream that falls as soon as it stands is no success.
func TestShortStreamsBackOff(t *testing.T) {
	bubble(t, func(h *harness) {
		most := 500 * time.Millisecond
		s, _ := h.connect()
		for range 8 {
			s.end <- status.Error(codes.Aborted, "a newer stream")
			start := time.Now()
			s, _ = h.connect()
			if wait := time.Since(start); wait < most/2 || wait > most {
				t.Errorf("waited %v, want half to all of %v", wait, most)
			}
			most = min(2*most, 30*time.Second)
		}
		<-time.After(time.Minute) // fake: this one lives
		s.end <- status.Error(codes.Unavailable, "restart")
		start := time.Now()
		h.connect()
		if wait := time.Since(start); wait > 500*time.Millisecond {
			t.Errorf("after a good stream waited %v", wait)
		}
	})
}

func TestStatus(t *testing.T) {
	bubble(t, func(h *harness) {
		want := func(state State, text string) {
			t.Helper()
			synctest.Wait()
			got := h.client.Status()
			if got.State != state || got.Address != "plane:1" || (got.Err != nil) != (text != "") ||
				got.Err != nil && !strings.Contains(got.Err.Error(), text) {
				t.Errorf("got %+v, want %v and %q", got, state, text)
			}
		}
		s, _ := h.accept()
		want(Connecting, "") // the peer has not said a word
		s.syncAck(nil)
		want(Connected, "")
		s.end <- status.Error(codes.Unavailable, "restart")
		want(Disconnected, "restart")
		s, _ = h.accept()
		want(Connecting, "restart")
		s.syncAck(nil)
		want(Connected, "")
		s.end <- nil
		want(Disconnected, "ended the stream")
		h.stop()
		want(Disconnected, "ended the stream")
	})
}

func TestLostControlPlaneChangesNothing(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		before, _, _ := h.store.Get("1")
		s.end <- status.Error(codes.Unavailable, "gone")
		<-time.After(time.Hour) // fake
		after, _, err := h.store.Get("1")
		if err != nil || after.Revision != before.Revision || h.inForce("1").Mode != policy.ModeDenylist {
			t.Errorf("%+v %v", after, err)
		}
	})
}

func TestGoAway(t *testing.T) {
	tests := []struct {
		name     string
		away     *netfencev1.GoAway
		min, max time.Duration
	}{
		{"between", &netfencev1.GoAway{Min: durationpb.New(10 * time.Second), Max: durationpb.New(20 * time.Second)}, 10 * time.Second, 20 * time.Second},
		{"unset", &netfencev1.GoAway{}, 0, 0},
		{"max below min", &netfencev1.GoAway{Min: durationpb.New(10 * time.Second), Max: durationpb.New(time.Second)}, 10 * time.Second, 10 * time.Second},
		{"negative", &netfencev1.GoAway{Min: durationpb.New(-time.Second), Max: durationpb.New(-time.Second)}, 0, 0},
		{"for ever", &netfencev1.GoAway{Min: durationpb.New(1000 * time.Hour), Max: durationpb.New(2000 * time.Hour)}, maxAway, maxAway},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(h *harness) {
				s, _ := h.connect()
				h.live("1", "r1", denylist())
				resume := h.kernel.pause()
				// What was commanded before is finished, and answered.
				s.send(&netfencev1.ControlCommand{Id: "1", Number: 1, Revision: "r2", Command: setMode(allowlist)})
				s.send(&netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_GoAway{GoAway: tt.away}})
				synctest.Wait()
				resume()
				if result := s.recv().GetResult(); result.GetCode() != applied {
					t.Errorf("got %v", result)
				}
				if _, err := s.Recv(); err == nil || status.Code(err) == codes.Canceled {
					t.Errorf("not closed from the daemon's side: %v", err)
				}
				s.end <- nil
				start := time.Now()
				_, sync := h.connect()
				if wait := time.Since(start); wait < tt.min || wait > tt.max {
					t.Errorf("came back after %v, want %v to %v", wait, tt.min, tt.max)
				}
				if got := sync.GetAttachments()[0].GetApplied().GetRevision(); got != "r2" {
					t.Errorf("applied revision %q", got)
				}
			})
		})
	}
}

// TestGoAwayUnfinished: a command that never comes into force does not hold the stream.
func TestGoAwayUnfinished(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "", denylist())
		resume := h.kernel.pause()
		s.send(&netfencev1.ControlCommand{Id: "1", Number: 1, Command: setMode(allowlist)})
		s.send(&netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_GoAway{GoAway: &netfencev1.GoAway{}}})
		start := time.Now()
		h.connect()
		if wait := time.Since(start); wait != drainTimeout {
			t.Errorf("came back after %v", wait)
		}
		resume()
	})
}

func TestOversizedCommandEndsTheStream(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		var entries []*netfencev1.CIDREntry
		for i := range 5000 {
			entries = append(entries, &netfencev1.CIDREntry{Cidr: fmt.Sprintf("10.0.%d.%d", i/256, i%256)})
		}
		s.send(&netfencev1.ControlCommand{Id: "1", Number: 1, Command: bulk(&netfencev1.BulkUpdate{Mode: allowlist, AllowCidrs: entries})})
		_, sync := h.connect()
		if text := sync.GetHello().GetLastStreamError(); !strings.Contains(text, codes.ResourceExhausted.String()) {
			t.Errorf("last stream error %q", text)
		}
		if h.inForce("1").Mode != policy.ModeDenylist {
			t.Error("changed")
		}
	}, func(o *Options) { o.MaxCommandBytes = 16 << 10 })
}

// TestPeerThatDoesNotRead must not hold the daemon for ever: answers that it wants pile up at its side.
func TestPeerThatDoesNotRead(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		start := time.Now()
		go func() {
			// More answers than flow control has room for.
			for s.Send(&netfencev1.ControlCommand{Id: strings.Repeat("x", 100), Command: setMode(allowlist)}) == nil {
			}
		}()
		_, sync := h.connect()
		if text := sync.GetHello().GetLastStreamError(); !strings.Contains(text, "read nothing") {
			t.Errorf("last stream error %q", text)
		}
		if wait := time.Since(start); wait < sendTimeout || wait > sendTimeout+time.Second {
			t.Errorf("after %v", wait)
		}
	})
}

// TestSyncAckMayComeLate, or twice, or not at all.
func TestSyncAckMayComeLate(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.accept()
		h.pending("1")
		done := h.subscribe("1")
		s.wantSubscribed("1")
		s.ack("1", allowlist)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		s.syncAck(nil)
		s.syncAck(&netfencev1.Welcome{})
		got := s.result(&netfencev1.ControlCommand{Id: "1", Number: 1, Command: setMode(allowlist)})
		if got.GetCode() != applied {
			t.Error(got)
		}
	})
}

var plaintext = Dialer{Credentials: func(string) (credentials.TransportCredentials, func() error, error) {
	return insecure.NewCredentials(), nil, nil
}}

// TestDialOverTCP is the one test with a real socket and a real clock.
func TestDialOverTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{t: t, streams: make(chan *peerStream)}
	server := grpc.NewServer()
	netfencev1.RegisterControlPlaneServer(server, p)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	h := newHarness(t, func(o *Options) {
		o.Dial, o.Addresses = plaintext.Dial, []string{listener.Addr().String()}
	})
	h.start()
	s, sync := p.connect()
	if sync.GetDaemonId() != "daemon" {
		t.Errorf("got %v", sync)
	}
	h.pending("1")
	done := h.subscribe("1")
	s.wantSubscribed("1")
	s.ack("1", allowlist)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	h.stop()
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestDialRefuses(t *testing.T) {
	if _, err := plaintext.Dial(t.Context(), "\x00"); err == nil {
		t.Error("dialled nonsense")
	}
	broken := Dialer{Credentials: func(string) (credentials.TransportCredentials, func() error, error) {
		return nil, nil, errors.New("no such file")
	}}
	if _, err := broken.Dial(t.Context(), "a:1"); err == nil || err.Error() != "dial a:1: no such file" {
		t.Error(err)
	}
}
