// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

// large is a policy of which few fit into a stream that is not read.
func large() *policy.Policy {
	p := allow("10.0.0.0/8")
	for range 2000 {
		p.Allow = append(p.Allow, p.Allow[0])
	}
	return p
}

// unanswered reads all commands of a stream, and keeps those that are to be answered.
type unanswered struct {
	mu       sync.Mutex
	commands []*netfencev1.ControlCommand
	bytes    int
}

func (u *unanswered) read(stream grpc.BidiStreamingClient[netfencev1.DaemonEvent, netfencev1.ControlCommand]) {
	for {
		command, err := stream.Recv()
		if err != nil {
			return
		}
		if command.GetNumber() != 0 {
			u.mu.Lock()
			u.commands = append(u.commands, command)
			u.bytes += proto.Size(command)
			u.mu.Unlock()
		}
	}
}

// take gives them to who answers now.
func (u *unanswered) take() (commands []*netfencev1.ControlCommand, bytes int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	commands, bytes = u.commands, u.bytes
	u.commands, u.bytes = nil, 0
	return commands, bytes
}

// A daemon that reads everything and answers nothing is sent QueueBytes and the command that reaches them; the latest of the
// rest waits until it answers.
func TestUnanswered(t *testing.T) {
	const queue = 64 << 10
	var by decisions
	by.set("a", large())
	plane, server := serve(t, controlplane.Options{Policy: by.policy, QueueBytes: queue})
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := netfencev1.NewControlPlaneClient(server.Dial(t)).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got unanswered
	var reading sync.WaitGroup
	reading.Go(func() { got.read(stream) })
	defer reading.Wait()
	defer cancel()
	sync := `sync { daemon_id: "mute" hello { features: "results" }`
	for i := range 200 {
		sync += fmt.Sprintf(` attachments { id: "%d" metadata { key: "p" value: "a" } }`, i)
	}
	if err := stream.Send(event(t, sync+` }`)); err != nil {
		t.Fatal(err)
	}
	good := server.Connect(t, controlplanetest.Config{ID: "good"})
	good.Attach(t, "/a", named("a"))
	for i := range 20 {
		by.set("a", allow(fmt.Sprintf("10.%d.0.0/16", i)))
		plane.Refresh(controlplane.Selector{})
		wait(t, plane, plane.Refresh(controlplane.Selector{DaemonID: "good"}))
	}
	time.Sleep(300 * time.Millisecond) //nolint:forbidigo // nothing tells that nothing more comes
	answer, bytes := got.take()
	if len(answer) == 0 || bytes > queue+proto.Size(answer[0]) {
		t.Errorf("%d commands of %d bytes to a daemon that answers nothing", len(answer), bytes)
	}
	// What it was sent was the first state; now it gets the last.
	total, last := len(answer), make(map[string]string)
	for end := time.Now().Add(controlplanetest.Patience); len(last) < 200 || !allLatest(last); answer, _ = got.take() {
		for _, command := range answer {
			last[command.GetId()] = command.GetBulkUpdate().GetAllowCidrs()[0].GetCidr()
			if err := stream.Send(event(t, fmt.Sprintf(`result { number: %d id: "%s" code: COMMAND_CODE_APPLIED revision: "%s" }`,
				command.GetNumber(), command.GetId(), command.GetRevision()))); err != nil {
				t.Fatal(err)
			}
		}
		total += len(answer)
		if time.Now().After(end) {
			t.Fatalf("%d commands, and the last state at %d attachments", total, len(last))
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // polls
	}
	if total > 600 {
		t.Errorf("%d commands for 200 attachments after 20 changes", total)
	}
}

// Attachments that come and go at a daemon that neither reads nor answers leave nothing behind.
func TestFloodOfAttachments(t *testing.T) {
	var by decisions
	by.set("a", large())
	plane, server := serve(t, controlplane.Options{Policy: by.policy, QueueBytes: 1})
	stream, err := netfencev1.NewControlPlaneClient(server.Dial(t)).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hello := `sync { daemon_id: "bad" hello { features: "results" }
		attachments { id: "full" metadata { key: "p" value: "a" } } }`
	if err := stream.Send(event(t, hello)); err != nil {
		t.Fatal(err)
	}
	const n = 6000
	pad := strings.Repeat("x", 1000)
	flood := func(from, to int) {
		for i := from; i < to; i++ {
			id := fmt.Sprint(pad, i)
			for _, e := range []*netfencev1.DaemonEvent{
				{Event: &netfencev1.DaemonEvent_Subscribed{Subscribed: &netfencev1.Subscribed{Id: id[800:], Target: id, Metadata: named("a")}}},
				{Event: &netfencev1.DaemonEvent_Unsubscribed{Unsubscribed: &netfencev1.Unsubscribed{Id: id[800:]}}},
			} {
				if err := stream.Send(e); err != nil {
					t.Fatal(err)
				}
			}
		}
		mark := fmt.Sprint("mark", to)
		if err := stream.Send(event(t, `subscribed { id: "`+mark+`" }`)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the flood is heard", func() bool { return len(slices.Collect(plane.Attachments(controlplane.Selector{ID: mark}))) > 0 })
	}
	heap := func() uint64 {
		runtime.GC() // and what pools have kept
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	// What the first get fills the stream.
	for i := range 50 {
		if err := stream.Send(event(t, fmt.Sprintf(`subscribed { id: "stays%d" metadata { key: "p" value: "a" } }`, i))); err != nil {
			t.Fatal(err)
		}
	}
	flood(0, 1000)
	before := heap()
	flood(1000, n)
	eventually(t, fmt.Sprintf("%d attachments that came and went take no memory", n), func() bool {
		return int64(heap())-int64(before) <= 2<<20
	})
}

// A daemon that reads nothing keeps no other from a change, and what waits for it stays the latest.
func TestReadsNothing(t *testing.T) {
	var by decisions
	by.set("a", large())
	plane, server := serve(t, controlplane.Options{Policy: by.policy, QueueBytes: 64 << 10})
	stream, err := netfencev1.NewControlPlaneClient(server.Dial(t)).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sync := `sync { daemon_id: "slow" hello { features: "results" }`
	for i := range 200 {
		sync += fmt.Sprintf(` attachments { id: "%d" metadata { key: "p" value: "a" } }`, i)
	}
	if err := stream.Send(event(t, sync+` }`)); err != nil {
		t.Fatal(err)
	}
	good := server.Connect(t, controlplanetest.Config{ID: "good"})
	id := good.Attach(t, "/a", named("a"))
	for i := range 20 {
		by.set("a", allow(fmt.Sprintf("10.%d.0.0/16", i)))
		plane.Refresh(controlplane.Selector{})
		if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{DaemonID: "good"})); outcome.Applied != 1 {
			t.Fatalf("outcome %+v", outcome)
		}
	}
	if !allows("10.19.0.0/16")(good.Policy(id)) {
		t.Errorf("got %+v", good.Policy(id))
	}
	// It wakes up, and hears of the 20 changes what fits into the queue and the last.
	sent, last := 0, make(map[string]string)
	for len(last) < 200 || !allLatest(last) {
		command, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if command.GetNumber() == 0 {
			continue
		}
		sent++
		last[command.GetId()] = command.GetBulkUpdate().GetAllowCidrs()[0].GetCidr()
		if err := stream.Send(event(t, fmt.Sprintf(`result { number: %d id: "%s" code: COMMAND_CODE_APPLIED revision: "%s" }`,
			command.GetNumber(), command.GetId(), command.GetRevision()))); err != nil {
			t.Fatal(err)
		}
	}
	if sent > 1000 {
		t.Errorf("%d commands for 200 attachments after 20 changes", sent)
	}
}

func allLatest(last map[string]string) bool {
	for _, cidr := range last {
		if cidr != "10.19.0.0/16" {
			return false
		}
	}
	return true
}

// A command that was overtaken is no refusal: it is sent once more, and then it is.
func TestSuperseded(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	refused := make(chan controlplane.Refusal, 10)
	plane, server := serve(t, controlplane.Options{Policy: by.policy, OnRefused: func(_ controlplane.Attachment, r controlplane.Refusal) { refused <- r }})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := netfencev1.NewControlPlaneClient(server.Dial(t)).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(event(t, `sync { daemon_id: "d" hello { features: "results" } attachments { id: "1" metadata { key: "p" value: "a" } } }`)); err != nil {
		t.Fatal(err)
	}
	answer := func(code, revision string) {
		t.Helper()
		command, err := stream.Recv()
		for ; err == nil && command.GetNumber() == 0; command, err = stream.Recv() {
		}
		if err == nil {
			if revision == "" {
				revision = command.GetRevision()
			}
			err = stream.Send(event(t, fmt.Sprintf(`result { number: %d id: "1" code: COMMAND_CODE_%s revision: "%s" }`, command.GetNumber(), code, revision)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	answer("SUPERSEDED", "other")
	answer("APPLIED", "")
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Applied != 1 || len(refused) != 0 {
		t.Errorf("outcome %+v, refused %d times", outcome, len(refused))
	}
	by.set("a", allow("10.2.0.0/16"))
	change := plane.Refresh(controlplane.Selector{})
	answer("SUPERSEDED", "other")
	answer("SUPERSEDED", "other")
	if outcome := wait(t, plane, change); outcome.Refused != 1 {
		t.Errorf("outcome %+v", outcome)
	}
	<-refused
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Refused != 1 || len(refused) != 0 {
		t.Errorf("outcome %+v, refused %d times more", outcome, len(refused))
	}
}
