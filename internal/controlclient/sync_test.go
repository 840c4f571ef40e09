// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

func denylist() *policy.Policy {
	return &policy.Policy{Mode: policy.ModeDenylist, DNS: policy.DNS{Mode: policy.DNSDisabled}}
}

func TestSyncRequestTellsWhatIsInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, func(o *Options) {
			o.DNSAddress = func(string) string { return "127.128.0.1:53" }
			o.MaxCommandBytes = 1 << 20
		})
		h.create(state.Attachment{ID: "1", Policy: denylist(), PolicyRevision: "r1", Metadata: map[string]string{"tenant": "acme"}})
		h.create(state.Attachment{ID: "2", Pending: true})             // acknowledgement timeout 0, or a restart
		h.create(state.Attachment{ID: "3", Pending: true, Held: true}) // nobody subscribed to it in this daemon
		h.create(state.Attachment{ID: "4", Policy: denylist()})
		h.start()
		h.settled("1")
		s, sync := h.accept()
		// The kernel may be observed before or after the request.
		if a := sync.GetAttachments()[0].GetApplied(); a.GetRevision() != "r1" && a.GetRevision() != "" {
			t.Errorf("applied: %v", a)
		}
		for _, a := range sync.GetAttachments() {
			a.Applied = nil
		}
		wantEqual(t, sync, &netfencev1.SyncRequest{
			DaemonId: "daemon", Hostname: "host", Metadata: map[string]string{"zone": "a"},
			Hello: &netfencev1.Hello{Features: wire.Features(), InstanceId: "instance", StreamSeq: 1, MaxCommandBytes: 1 << 20},
			Attachments: []*netfencev1.Attachment{{
				Id: "1", Target: "veth1", Type: netfencev1.AttachmentType_ATTACHMENT_TYPE_TC,
				Mode: netfencev1.PolicyMode_POLICY_MODE_DENYLIST, DnsMode: netfencev1.DnsMode_DNS_MODE_DISABLED,
				Metadata: map[string]string{"tenant": "acme"}, DnsAddress: "127.128.0.1:53",
			}, {
				Id: "4", Target: "veth4", Type: netfencev1.AttachmentType_ATTACHMENT_TYPE_TC,
				Mode: netfencev1.PolicyMode_POLICY_MODE_DENYLIST, DnsMode: netfencev1.DnsMode_DNS_MODE_DISABLED,
				DnsAddress: "127.128.0.1:53",
			}},
		})
		s.wantSubscribed("2")

		// The next stream tells what is in force by now, and why the last one ended.
		h.settled("1")
		h.settled("4")
		s.end <- status.Error(codes.Unavailable, strings.Repeat("x", 1000))
		_, sync = h.accept()
		if got := sync.GetAttachments()[0].GetApplied().GetRevision(); got != "r1" {
			t.Errorf("applied revision %q", got)
		}
		if got := sync.GetAttachments()[1].GetApplied().GetRevision(); got != "" {
			t.Errorf("applied revision %q of one without", got)
		}
		hello := sync.GetHello()
		if hello.GetStreamSeq() != 2 || !strings.Contains(hello.GetLastStreamError(), "xxx") || len(hello.GetLastStreamError()) > maxText {
			t.Errorf("hello: %v", hello)
		}
	})
}

// TestSyncRequestNamesOnlyWhatIsInForce: what the kernel does not have yet must be sent again.
func TestSyncRequestNamesOnlyWhatIsInForce(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		resume := h.kernel.pause()
		s.send(&netfencev1.ControlCommand{Id: "1", Number: 1, Revision: "r2", Command: setMode(allowlist)})
		h.waitFor(func() bool { a, _, _ := h.store.Get("1"); return a.PolicyRevision == "r2" })
		s.end <- status.Error(codes.Unavailable, "restart")
		s, sync := h.connect()
		a := sync.GetAttachments()[0]
		if a.GetApplied().GetRevision() != "" || a.GetMode() != netfencev1.PolicyMode_POLICY_MODE_DENYLIST {
			t.Errorf("not in force yet, and told as %v", a)
		}
		resume()
		h.settled("1")

		// A refusal shows until something newer is in force.
		s.send(&netfencev1.ControlCommand{Id: "1", Command: setMode(netfencev1.PolicyMode_POLICY_MODE_UNSPECIFIED)})
		h.waitFor(func() bool { _, status, _ := h.store.Get("1"); return status.LastError != nil })
		s.end <- status.Error(codes.Unavailable, "restart")
		_, sync = h.connect()
		if got := sync.GetAttachments()[0].GetApplied(); got.GetRevision() != "r2" || !strings.Contains(got.GetError(), "mode") {
			t.Errorf("applied: %v", got)
		}
	})
}

// TestOverflow: an event is at most 3 MiB; the attachments beyond follow as Subscribed, once it is known
// whether the peer reads what is in force of them.
func TestOverflow(t *testing.T) {
	const n, large = 900, 4000
	for _, welcome := range []*netfencev1.Welcome{nil, {}} {
		t.Run(fmt.Sprintf("welcome=%v", welcome != nil), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t)
				for i := range n {
					h.create(state.Attachment{
						ID: fmt.Sprintf("%04d", i), Policy: denylist(), PolicyRevision: "r",
						Metadata: map[string]string{"k": strings.Repeat("x", large)},
					})
				}
				h.start()
				s, sync := h.accept()
				if size := proto.Size(sync); size > maxEventBytes || size < maxEventBytes-2*large {
					t.Errorf("SyncRequest of %d bytes", size)
				}
				h.settled(fmt.Sprintf("%04d", n-1))
				s.syncAck(welcome)
				for i := len(sync.GetAttachments()); i < n; i++ {
					subscribed := s.wantSubscribed(fmt.Sprintf("%04d", i))
					if (subscribed.GetApplied() != nil) != (welcome != nil) {
						t.Fatalf("applied: %v", subscribed.GetApplied())
					}
				}
			})
		})
	}
}

func TestAttachmentOnItsWayOutIsNotTold(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "", denylist())
		resume := h.kernel.pause()
		if _, err := h.store.Remove("1", state.ReasonDetached, ""); err != nil {
			t.Fatal(err)
		}
		s.end <- status.Error(codes.Unavailable, "restart")
		s, sync := h.connect()
		if len(sync.GetAttachments()) != 0 {
			t.Errorf("told: %v", sync.GetAttachments())
		}
		// A command for it is answered, and is no reason for an Unsubscribed of its own.
		got := s.result(&netfencev1.ControlCommand{Id: "1", Number: 1, Command: setMode(allowlist)})
		wantEqual(t, got, &netfencev1.CommandResult{Id: "1", Number: 1, Code: netfencev1.CommandCode_COMMAND_CODE_UNKNOWN})
		resume()
		s.wantUnsubscribed("1", netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_DETACHED, "")
	})
}

func TestUnsubscribed(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		for i, reason := range []state.Reason{state.ReasonRemoved, state.ReasonDetached, state.ReasonError} {
			id := fmt.Sprint(i)
			h.live(id, "", denylist())
			if _, err := h.store.Remove(id, reason, "because "+id); err != nil {
				t.Fatal(err)
			}
			s.wantUnsubscribed(id, netfencev1.UnsubscribeReason(i+1), "because "+id)
		}
		synctest.Wait()
		if gone := h.store.Gone(); len(gone) != 0 {
			t.Errorf("still to be told: %v", gone)
		}
		// What went while nobody listened is told by the next stream.
		s.end <- status.Error(codes.Unavailable, "restart")
		h.disconnected()
		h.live("9", "", denylist())
		if _, err := h.store.Remove("9", state.ReasonRemoved, "while away"); err != nil {
			t.Fatal(err)
		}
		s, _ = h.connect()
		s.wantUnsubscribed("9", netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_REMOVED, "while away")
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("without a store")
	}
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		opts := h.client.opts
		opts.Metadata = map[string]string{"k": strings.Repeat("x", maxEventBytes)}
		if _, err := New(opts); err == nil || errors.Is(err, errEnded) {
			t.Errorf("metadata without end: %v", err)
		}
	})
}

// TestAnnounce: metadata that change are told with what is in force, once it is known whether the peer reads that; an
// attachment that is not the control plane's is not told of.
func TestAnnounce(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.accept()
		h.live("1", "r1", denylist())
		h.create(state.Attachment{ID: "own", OwnPolicy: true, Policy: denylist()})
		for i, zone := range []string{"a", "b"} {
			for _, id := range []string{"own", "1"} {
				if err := h.store.SetMetadata(id, map[string]string{"zone": zone}); err != nil {
					t.Fatal(err)
				}
				h.client.Announce(id)
			}
			synctest.Wait()
			if i == 0 {
				s.syncAck(&netfencev1.Welcome{ServerId: "test"})
			}
			told := s.recv().GetSubscribed()
			if told.GetId() != "1" || told.GetMetadata()["zone"] != zone || told.GetApplied().GetRevision() != "r1" {
				t.Errorf("told %v", told)
			}
		}
	})
}
