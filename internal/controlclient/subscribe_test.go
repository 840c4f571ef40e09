// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

const allowlist = netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST

// wantSubscribed takes the announcement of id.
func (s *peerStream) wantSubscribed(id string) *netfencev1.Subscribed {
	s.t.Helper()
	event := s.recv()
	if event.GetSubscribed().GetId() != id {
		s.t.Fatalf("want Subscribed of %s, got %v", id, event)
	}
	return event.GetSubscribed()
}

// wantUnsubscribed takes the end of id, with an error that contains text.
func (s *peerStream) wantUnsubscribed(id string, reason netfencev1.UnsubscribeReason, text string) {
	s.t.Helper()
	event := s.recv()
	got := event.GetUnsubscribed()
	if got.GetId() != id || got.GetReason() != reason || !strings.Contains(got.GetError(), text) {
		s.t.Fatalf("want Unsubscribed of %s, %v, %q, got %v", id, reason, text, event)
	}
}

const failed = netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_ERROR

func TestSubscribeReturnsWhenAcknowledgedAndInForce(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		done := h.subscribe("1")
		subscribed := s.wantSubscribed("1")
		wantEqual(t, subscribed, &netfencev1.Subscribed{
			Id: "1", Target: "veth1", Type: netfencev1.AttachmentType_ATTACHMENT_TYPE_TC,
			Mode: netfencev1.PolicyMode_POLICY_MODE_BLOCK_ALL, DnsMode: netfencev1.DnsMode_DNS_MODE_ALLOWLIST,
			DnsAddress: "dns-of-1",
		})
		blocked(t, done)
		resume := h.kernel.pause()
		s.ack("1", allowlist)
		blocked(t, done) // acknowledged is not enough
		resume()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := h.inForce("1").Mode; got != policy.ModeAllowlist {
			t.Errorf("in force: %v", got)
		}
	}, func(o *Options) { o.DNSAddress = func(id string) string { return "dns-of-" + id } })
}

// TestBulkUpdateAcknowledges, and a Subscribe that comes after the acknowledgement finds it.
func TestBulkUpdateAcknowledges(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		done := h.subscribe("1")
		s.wantSubscribed("1")
		s.send(&netfencev1.ControlCommand{Id: "1", Command: &netfencev1.ControlCommand_BulkUpdate{
			BulkUpdate: &netfencev1.BulkUpdate{Mode: allowlist},
		}})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := <-h.subscribe("1"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSubscribeTimesOut(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		start := time.Now()
		done := h.subscribe("1")
		s.wantSubscribed("1")
		err := <-done
		var timeout *TimeoutError
		if !errors.As(err, &timeout) || time.Since(start) != 5*time.Second {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		s.wantUnsubscribed("1", failed, "no acknowledgement in force within 5s")

		// The acknowledgement that comes too late is for an attachment that is not there.
		s.ack("1", allowlist)
		s.wantUnsubscribed("1", failed, "no such attachment")
	})
}

func TestSubscribeTimesOutInTheKernel(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		done := h.subscribe("1")
		s.wantSubscribed("1")
		resume := h.kernel.pause()
		s.ack("1", allowlist)
		var timeout *TimeoutError
		if err := <-done; !errors.As(err, &timeout) {
			t.Fatal(err)
		}
		resume()
		s.wantUnsubscribed("1", failed, "no acknowledgement")
	})
}

// TestTimeoutRunsFromTheFirstSend: a reconnect announces again and does not begin it anew.
func TestTimeoutRunsFromTheFirstSend(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		start := time.Now()
		done := h.subscribe("1")
		s.wantSubscribed("1")
		<-time.After(3 * time.Second) // fake
		s.end <- status.Error(codes.Unavailable, "restart")
		s, sync := h.connect()
		if len(sync.GetAttachments()) != 0 {
			t.Errorf("pending in SyncRequest: %v", sync)
		}
		s.wantSubscribed("1")
		var timeout *TimeoutError
		if err := <-done; !errors.As(err, &timeout) || time.Since(start) != 5*time.Second {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		s.wantUnsubscribed("1", failed, "")
	})
}

func TestSubscribeSurvivesReconnect(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		done := h.subscribe("1")
		s.wantSubscribed("1")
		s.end <- status.Error(codes.Unavailable, "restart")
		s, _ = h.connect()
		s.wantSubscribed("1")
		s.ack("1", allowlist)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestRefusedAcknowledgementFailsTheAttach(t *testing.T) {
	tests := []struct {
		name string
		ack  *netfencev1.SubscribedAck
		want string
	}{
		{"mode unspecified", &netfencev1.SubscribedAck{}, "mode"},
		{"bad rule", &netfencev1.SubscribedAck{Mode: allowlist, AllowCidrs: []*netfencev1.CIDREntry{{Cidr: "nonsense"}}}, "allow_cidrs[0].cidr"},
		{"named policy", &netfencev1.SubscribedAck{Mode: allowlist, UsePolicy: &netfencev1.PolicyRef{Name: "p"}}, "use_policy"},
		{"source", &netfencev1.SubscribedAck{Mode: allowlist, Source: []string{"eth0"}}, "source[0]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(h *harness) {
				s, _ := h.connect()
				h.pending("1")
				start := time.Now()
				done := h.subscribe("1")
				s.wantSubscribed("1")
				s.send(&netfencev1.ControlCommand{Id: "1", Command: &netfencev1.ControlCommand_SubscribedAck{SubscribedAck: tt.ack}})
				err := <-done
				var refused *RefusedError
				if !errors.As(err, &refused) || !strings.Contains(err.Error(), tt.want) || time.Since(start) != 0 {
					t.Fatalf("after %v: %v", time.Since(start), err)
				}
				s.wantUnsubscribed("1", failed, tt.want)
			})
		})
	}
}

func TestAcknowledgementRefusedByTheKernel(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		h.settled("1")
		h.kernel.refuse = func(state.Desired) error { return errors.New("map is full") }
		done := h.subscribe("1")
		s.wantSubscribed("1")
		s.ack("1", allowlist)
		var refused *RefusedError
		if err := <-done; !errors.As(err, &refused) || !strings.Contains(err.Error(), "map is full") {
			t.Fatal(err)
		}
		s.wantUnsubscribed("1", failed, "map is full")
	})
}

func TestSubscribeUnavailable(t *testing.T) {
	noRoute := errors.New("no route to host")
	bubble(t, func(h *harness) {
		h.pending("1")
		var unavailable *UnavailableError
		// The first dial is under way or has failed: both are an answer at once.
		err := <-h.subscribe("1")
		if !errors.As(err, &unavailable) || !errors.Is(err, noRoute) {
			t.Fatal(err)
		}
	}, func(o *Options) {
		o.Dial = func(context.Context, string) (Conn, error) { return nil, noRoute }
	})
}

// TestSubscribeWhileDialing waits for the dial, at most for the timeout.
func TestSubscribeWhileDialing(t *testing.T) {
	bubble(t, func(h *harness) {
		h.pending("1")
		start := time.Now()
		err := <-h.subscribe("1")
		var unavailable *UnavailableError
		if !errors.As(err, &unavailable) || time.Since(start) != 5*time.Second {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
	}, func(o *Options) {
		o.Dial = func(ctx context.Context, _ string) (Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	})
}

// TestSubscribeRefusedByServer: a stream that was refused was never one.
func TestSubscribeRefusedByServer(t *testing.T) {
	bubble(t, func(h *harness) {
		h.pending("1")
		done := h.subscribe("1")
		s, _ := h.accept()
		s.end <- status.Error(codes.PermissionDenied, "unknown daemon")
		var unavailable *UnavailableError
		if err := <-done; !errors.As(err, &unavailable) || status.Code(unavailable.Cause) != codes.PermissionDenied {
			t.Fatal(err)
		}
	})
}

func TestUnreachablePending(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		s.end <- status.Error(codes.Unavailable, "down")
		h.disconnected()
		h.pending("1")
		if err := <-h.subscribe("1"); err != nil {
			t.Fatal(err)
		}
		if err := h.store.Release("1"); err != nil {
			t.Fatal(err)
		}
		h.settled("1")
		if got := h.inForce("1").Mode; got != policy.ModeBlockAll {
			t.Errorf("pending is %v", got)
		}
		s, _ = h.connect()
		s.wantSubscribed("1")
		s.ack("1", allowlist)
		h.waitFor(func() bool { return h.inForce("1").Mode == policy.ModeAllowlist })
	}, func(o *Options) { o.WhenUnreachable = UnreachablePending })
}

// disconnected waits until the client knows that its stream ended.
func (h *harness) disconnected() {
	for l := h.client.currentLink(); l.state != Disconnected; l = h.client.currentLink() {
		<-l.changed
	}
}

// waitFor waits for a condition of the store's.
func (h *harness) waitFor(condition func() bool) {
	for {
		changed := h.store.Changed()
		if condition() {
			return
		}
		<-changed
	}
}

// TestNoTimeout: Attach does not wait, and a refused first policy leaves the attachment closed.
func TestNoTimeout(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		if err := <-h.subscribe("1"); err != nil {
			t.Fatal(err)
		}
		if err := h.store.Release("1"); err != nil {
			t.Fatal(err)
		}
		s.wantSubscribed("1")
		s.ack("1", netfencev1.PolicyMode_POLICY_MODE_UNSPECIFIED)
		h.waitFor(func() bool { _, status, _ := h.store.Get("1"); return status.LastError != nil })
		a, _, err := h.store.Get("1")
		if err != nil || !a.Pending || a.Policy.Mode != policy.ModeBlockAll {
			t.Fatalf("%v %v", a, err)
		}
		s.ack("1", allowlist)
		h.waitFor(func() bool { return h.inForce("1").Mode == policy.ModeAllowlist })
	}, func(o *Options) { o.AckTimeout = 0 })
}

func TestSubscribeNotReady(t *testing.T) {
	broken := errors.New("policy a.yaml: rule 1: nonsense")
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		var refused *RefusedError
		if err := <-h.subscribe("1"); !errors.As(err, &refused) || !errors.Is(err, broken) {
			t.Fatal(err)
		}
		s.wantUnsubscribed("1", failed, "a.yaml") // and no Subscribed before
	}, func(o *Options) { o.Ready = func() error { return broken } })
}

func TestSubscribeCancelled(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.pending("1")
		ctx, cancel := context.WithCancel(h.t.Context())
		done := make(chan error, 1)
		go func() { done <- h.client.Subscribe(ctx, "1") }()
		s.wantSubscribed("1")
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}

func TestSubscribeOfWhatWentAway(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		if err := h.client.Subscribe(h.t.Context(), "1"); !errors.Is(err, state.ErrNotFound) {
			t.Fatal(err)
		}
		h.pending("2")
		done := h.subscribe("2")
		s.wantSubscribed("2")
		if _, err := h.store.Remove("2", state.ReasonRemoved, "interface veth2 is gone"); err != nil {
			t.Fatal(err)
		}
		s.wantUnsubscribed("2", netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_REMOVED, "is gone")
		s.ack("2", allowlist)
		s.wantUnsubscribed("2", failed, "no such attachment")
		if err := <-done; !errors.Is(err, state.ErrNotFound) {
			t.Fatal(err)
		}
		// On its way out, and not gone yet.
		h.pending("3")
		h.settled("3")
		resume := h.kernel.pause()
		if _, err := h.store.Remove("3", state.ReasonDetached, ""); err != nil {
			t.Fatal(err)
		}
		if err := h.client.Subscribe(h.t.Context(), "3"); !errors.Is(err, state.ErrNotFound) {
			t.Fatal(err)
		}
		resume()
	})
}
