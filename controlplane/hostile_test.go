// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
)

// talk opens a stream, sends the events, and returns how the control plane ended it.
func talk(t *testing.T, server *controlplanetest.Server, events ...*netfencev1.DaemonEvent) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), controlplanetest.Patience)
	defer cancel()
	stream, err := netfencev1.NewControlPlaneClient(server.Dial(t)).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range events {
		if stream.Send(event) != nil {
			break // over; Recv says why
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}

func event(t testing.TB, text string) *netfencev1.DaemonEvent {
	t.Helper()
	m := new(netfencev1.DaemonEvent)
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// A daemon that goes beyond what a daemon may say is sent away, and nothing of it is kept.
func TestBounds(t *testing.T) {
	plane, server := serve(t, controlplane.Options{Attachments: 3})
	long := strings.Repeat("x", 5000)
	huge := strings.Repeat("x", 1<<20+1)
	hello := event(t, `sync { daemon_id: "d" }`)
	for _, tt := range []struct {
		name   string
		code   codes.Code
		events []*netfencev1.DaemonEvent
	}{
		{"no SyncRequest", codes.InvalidArgument, []*netfencev1.DaemonEvent{event(t, `heartbeat {}`)}},
		{"nothing at all", codes.InvalidArgument, []*netfencev1.DaemonEvent{{}}},
		{"a second one", codes.InvalidArgument, []*netfencev1.DaemonEvent{hello, hello}},
		{"no id", codes.InvalidArgument, []*netfencev1.DaemonEvent{event(t, `sync {}`)}},
		{"long id", codes.InvalidArgument, []*netfencev1.DaemonEvent{event(t, `sync { daemon_id: "`+long+`" }`)}},
		{"long host name", codes.InvalidArgument, []*netfencev1.DaemonEvent{event(t, `sync { daemon_id: "d" hostname: "`+long+`" }`)}},
		{"much metadata", codes.InvalidArgument, []*netfencev1.DaemonEvent{event(t, `sync { daemon_id: "d" metadata { key: "x" value: "`+huge+`" } }`)}},
		{"long policy name", codes.InvalidArgument, []*netfencev1.DaemonEvent{event(t, `sync { daemon_id: "d" policies { name: "`+long+`" } }`)}},
		{"many policies", codes.ResourceExhausted, []*netfencev1.DaemonEvent{
			event(t, `sync { daemon_id: "d" `+strings.Repeat(`policies { name: "x" } `, 4)+` }`)}},
		{"attachment without id", codes.InvalidArgument, []*netfencev1.DaemonEvent{event(t, `sync { daemon_id: "d" attachments {} }`)}},
		{"long attachment id", codes.InvalidArgument, []*netfencev1.DaemonEvent{hello, event(t, `subscribed { id: "`+long+`" }`)}},
		{"long target", codes.InvalidArgument, []*netfencev1.DaemonEvent{hello, event(t, `subscribed { id: "1" target: "`+long+`" }`)}},
		{"long revision", codes.InvalidArgument, []*netfencev1.DaemonEvent{hello, event(t, `subscribed { id: "1" applied { revision: "`+long+`" } }`)}},
		{"many at once", codes.ResourceExhausted, []*netfencev1.DaemonEvent{
			event(t, `sync { daemon_id: "d" attachments { id: "1" } attachments { id: "2" } attachments { id: "3" } attachments { id: "4" } }`)}},
		{"many one by one", codes.ResourceExhausted, []*netfencev1.DaemonEvent{hello,
			event(t, `subscribed { id: "1" }`), event(t, `subscribed { id: "2" }`), event(t, `subscribed { id: "3" }`), event(t, `subscribed { id: "4" }`)}},
		{"much metadata in all", codes.ResourceExhausted, []*netfencev1.DaemonEvent{hello,
			event(t, `subscribed { id: "1" metadata { key: "x" value: "`+huge[:100_000]+`" } }`)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := talk(t, server, tt.events...); status.Code(err) != tt.code {
				t.Errorf("ended with %v, want %v", err, tt.code)
			}
		})
	}
	for _, d := range plane.Daemons() {
		if d.Attachments > 4 {
			t.Errorf("kept %+v", d)
		}
	}
}

// A flood of events about what is unknown, or again and again about the same, leaves nothing behind and holds nobody up.
func TestFlood(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	plane, server := serve(t, controlplane.Options{Policy: by.policy})
	good := server.Connect(t, controlplanetest.Config{ID: "good"})
	id := good.Attach(t, "/a", named("a"))
	ended := make(chan error, 1)
	go func() {
		events := []*netfencev1.DaemonEvent{event(t, `sync { daemon_id: "bad" hello { features: "results" features: "named_policies" } }`)}
		for i := range 5000 {
			events = append(events,
				event(t, fmt.Sprintf(`result { number: %d code: COMMAND_CODE_REFUSED id: "%d" }`, i, i)),
				event(t, fmt.Sprintf(`unsubscribed { id: "%d" }`, i)),
				event(t, fmt.Sprintf(`heartbeat { stats { id: "%d" packets_allowed: 1 } stats { id: "same" } }`, i)),
				event(t, `subscribed { id: "same" metadata { key: "p" value: "a" } }`))
		}
		ended <- talk(t, server, events...)
	}()
	for i := range 50 {
		by.set("a", allow(fmt.Sprintf("10.%d.0.0/16", i)))
		if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{DaemonID: "good"})); outcome.Applied != 1 {
			t.Fatalf("outcome %+v", outcome)
		}
	}
	if !allows("10.49.0.0/16")(good.Policy(id)) {
		t.Errorf("got %+v", good.Policy(id))
	}
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("the flood ended with %v", err)
	}
	for _, d := range plane.Daemons() {
		if d.ID == "bad" && d.Attachments > 1 {
			t.Errorf("kept %+v", d)
		}
	}
}

// FuzzEvents: whatever a daemon says, the control plane serves the next one.
func FuzzEvents(f *testing.F) {
	for _, text := range []string{
		`subscribed { id: "1" metadata { key: "p" value: "a" } }`, `unsubscribed { id: "1" reason: UNSUBSCRIBE_REASON_ERROR error: "x" }`,
		`result { number: 1 id: "1" code: COMMAND_CODE_REFUSED violations { field: "x" } }`, `result { number: 1 code: COMMAND_CODE_STALE }`,
		`sync { daemon_id: "d" hello { features: "named_policies" } attachments { id: "1" applied { policy_name: "shared-1" } } policies { name: "shared-1" } }`,
		`heartbeat { stats { id: "1" } }`,
	} {
		b, err := proto.Marshal(event(f, text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		_, server := serve(t, controlplane.Options{Policy: by.policy})
		events := []*netfencev1.DaemonEvent{event(t, `sync { daemon_id: "d" hello { features: "results" features: "named_policies" } }`)}
		for _, data := range [][]byte{first, second, first} {
			m := new(netfencev1.DaemonEvent)
			if proto.Unmarshal(data, m) != nil {
				return
			}
			events = append(events, m)
		}
		if err := talk(t, server, events...); err == nil {
			t.Error("the stream ended without a reason")
		}
		server.Connect(t, controlplanetest.Config{ID: "d"}).Attach(t, "/a", named("a"))
	})
}

// Who was admitted and is not any more has his stream ended; the others keep theirs.
func TestReauthorize(t *testing.T) {
	var taken atomic.Bool
	plane, server := serve(t, controlplane.Options{Authorize: func(_ context.Context, p controlplane.Peer) error {
		if taken.Load() && p.DaemonID == "a" {
			return errors.New("taken back")
		}
		return nil
	}})
	a, b := server.Connect(t, controlplanetest.Config{ID: "a"}), server.Connect(t, controlplanetest.Config{ID: "b"})
	plane.Reauthorize(t.Context())
	taken.Store(true)
	plane.Reauthorize(t.Context())
	if err := a.Ended(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "taken back") {
		t.Errorf("ended with %v", err)
	}
	if err := a.Reconnect(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("came back: %v", err)
	}
	connected(t, plane, "a", false)
	if d := connected(t, plane, "b", true); d.Err != nil {
		t.Errorf("b: %+v", d)
	}
	b.Disconnect()
}
