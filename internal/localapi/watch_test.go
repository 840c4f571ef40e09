// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/state"
)

type watching interface {
	Recv() (*netfencev1.EventBatch, error)
}

// watch returns once the daemon has begun to watch.
func (e *env) watch(t *testing.T, ctx context.Context, ids ...string) watching {
	t.Helper()
	stream, err := e.client.Watch(ctx, &netfencev1.WatchRequest{Ids: ids})
	if err != nil {
		t.Fatal(err)
	}
	wantBatch(t, stream, &netfencev1.EventBatch{DaemonId: "node-1", InstanceId: "run-1", Number: 1})
	return stream
}

func wantBatch(t *testing.T, stream watching, want *netfencev1.EventBatch) {
	t.Helper()
	got, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestWatchStreamsEvents(t *testing.T) {
	e := newEnv(t, state.Limits{})
	one, other := e.attach(t, "eth0", ""), e.attach(t, "eth1", "")
	all, only := e.watch(t, t.Context()), e.watch(t, t.Context(), other)
	at := time.Unix(1700000000, 5)
	e.hub.Publish(events.Event{Time: at, Attachment: one, Flow: &events.DeniedFlow{
		Source: netip.MustParseAddrPort("10.0.0.2:4000"), Destination: netip.MustParseAddrPort("[2001:db8::1]:443"),
		Protocol: 6, Length: 60, Reason: "deny-rule", Names: []string{"a.example", "b.example"},
		Rule: "deny 2001:db8::/32", WouldDeny: true,
	}})
	wantBatch(t, all, &netfencev1.EventBatch{Number: 2, Events: []*netfencev1.Event{{
		Time: timestamppb.New(at), Id: one, Event: &netfencev1.Event_DeniedFlow{DeniedFlow: &netfencev1.DeniedFlow{
			Address: "2001:db8::1", Port: 443, IpProtocol: 6, Reason: "deny-rule", Names: []string{"a.example", "b.example"},
			SourceAddress: "10.0.0.2", SourcePort: 4000, Length: 60, Rule: "deny 2001:db8::/32", Audit: true,
		}},
	}}})
	e.hub.Publish(events.Event{Time: at, Attachment: other, Decision: &events.DNSDecision{
		Name: "example.com", Type: "AAAA", Allowed: true, Reason: "dns allow example.com",
		Learned: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::2")},
	}})
	decision := &netfencev1.Event{
		Time: timestamppb.New(at), Id: other, Event: &netfencev1.Event_DnsDecision{DnsDecision: &netfencev1.DnsDecision{
			Domain: "example.com", QueryType: "AAAA", Allowed: true, Learned: []string{"192.0.2.1", "2001:db8::2"},
			Reason: "dns allow example.com",
		}},
	}
	wantBatch(t, all, &netfencev1.EventBatch{Number: 3, Events: []*netfencev1.Event{decision}})
	wantBatch(t, only, &netfencev1.EventBatch{Number: 2, Events: []*netfencev1.Event{decision}})
	e.hub.Publish(events.Event{Time: at, Attachment: other, Lost: 7})
	wantBatch(t, only, &netfencev1.EventBatch{Number: 3, Lost: 7})
	e.hub.Publish(events.Event{Time: at, Attachment: other, Incident: &events.Incident{Kind: "names_limit", Message: "full"}})
	wantBatch(t, only, &netfencev1.EventBatch{Number: 4, Events: []*netfencev1.Event{{
		Time: timestamppb.New(at), Id: other, Event: &netfencev1.Event_Incident{Incident: &netfencev1.Incident{Kind: "names_limit", Message: "full"}},
	}}})
	// What is not known of a packet is left out.
	e.hub.Publish(events.Event{Time: at, Attachment: other, Flow: &events.DeniedFlow{Reason: "not-ip", Length: 64}})
	wantBatch(t, only, &netfencev1.EventBatch{Number: 5, Events: []*netfencev1.Event{{
		Time: timestamppb.New(at), Id: other, Event: &netfencev1.Event_DeniedFlow{DeniedFlow: &netfencev1.DeniedFlow{Reason: "not-ip", Length: 64}},
	}}})
}

func TestBatchesAreOfBoundedSize(t *testing.T) {
	list := batches(make([]events.Event, 2*maxBatch+1), 9)
	if len(list) != 3 || len(list[0].GetEvents()) != maxBatch || len(list[2].GetEvents()) != 1 {
		t.Errorf("%d batches, want 3 with the last of 1", len(list))
	}
	if list[0].GetLost() != 9 || list[1].GetLost() != 0 {
		t.Errorf("lost %d and %d, want 9 once", list[0].GetLost(), list[1].GetLost())
	}
	if list := batches(nil, 3); len(list) != 1 || list[0].GetLost() != 3 {
		t.Errorf("lost alone: %v", list)
	}
}

func TestWatchRefuses(t *testing.T) {
	e := newEnv(t, state.Limits{})
	const unknown = "0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2"
	stream, err := e.client.Watch(t.Context(), &netfencev1.WatchRequest{Ids: []string{unknown}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); status.Code(err) != codes.NotFound || !strings.HasPrefix(status.Convert(err).Message(), "watch: attachment "+unknown) {
		t.Errorf("unknown attachment: %v", err)
	}
	e.server.opts.Events = nil
	stream, err = e.client.Watch(t.Context(), &netfencev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantStatus(t, err, codes.Unimplemented, "watch: this daemon has no events")
}

func TestWatchEnds(t *testing.T) {
	t.Run("with its caller", func(t *testing.T) {
		e := newEnv(t, state.Limits{})
		ctx, cancel := context.WithCancel(t.Context())
		stream := e.watch(t, ctx)
		cancel()
		if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("got %v", err)
		}
		e.server.Stop(t.Context()) // returns: nothing is left of the call
	})
	t.Run("with the daemon", func(t *testing.T) {
		e := newEnv(t, state.Limits{})
		stream := e.watch(t, t.Context())
		e.server.Stop(t.Context()) // does not wait for the caller
		_, err := stream.Recv()
		wantStatus(t, err, codes.Unavailable, "the daemon is stopping")
	})
	t.Run("with the hub", func(t *testing.T) {
		e := newEnv(t, state.Limits{})
		stream := e.watch(t, t.Context())
		e.hub.Close()
		_, err := stream.Recv()
		wantStatus(t, err, codes.Unavailable, "the daemon is stopping")
	})
	t.Run("while its caller does not read", func(t *testing.T) {
		e := newEnv(t, state.Limits{})
		stream := e.watch(t, t.Context())
		long := events.Event{Attachment: "a", Incident: &events.Incident{Message: strings.Repeat("x", 1<<20)}}
		for range 16 { // more than the transport takes without a reader
			e.hub.Publish(long)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		e.server.Stop(ctx)
		if ctx.Err() == nil {
			t.Error("the daemon did not wait for the caller at all")
		}
		for {
			if _, err := stream.Recv(); err != nil {
				break
			}
		}
	})
}
