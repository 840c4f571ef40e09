// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"log/slog"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// sent notes what a session without a control plane sends.
type sent struct {
	grpc.BidiStreamingClient[netfencev1.DaemonEvent, netfencev1.ControlCommand]
	events []*netfencev1.DaemonEvent
}

func (s *sent) Send(event *netfencev1.DaemonEvent) error {
	s.events = append(s.events, event)
	return nil
}

// FuzzCommand hands whatever decodes to the session. A command changes the attachment that it names or
// nothing, what is desired stays valid, and there is an answer exactly to a numbered one.
func FuzzCommand(f *testing.F) {
	for _, cmd := range []*netfencev1.ControlCommand{
		{Id: "live", Number: 1, Revision: "r2", Command: setMode(allowlist)},
		{Id: "live", Number: 2, BaseRevision: "r0", Command: allow("192.0.2.0/24")},
		{Id: "pending", Number: 3, Command: bulk(&netfencev1.BulkUpdate{Mode: allowlist, AllowCidrs: []*netfencev1.CIDREntry{{Cidr: "::ffff:192.0.2.1"}}})},
		{Id: "pending", Command: &netfencev1.ControlCommand_SubscribedAck{SubscribedAck: &netfencev1.SubscribedAck{Mode: allowlist, Dns: &netfencev1.DnsConfig{}}}},
		{Id: "live", Number: 4, Command: &netfencev1.ControlCommand_RemoveDomain{RemoveDomain: "*.xn--"}},
		{Command: &netfencev1.ControlCommand_PutPolicy{}},
		{Id: "nobody", Number: 5, Command: &netfencev1.ControlCommand_UsePolicy{}},
		{},
	} {
		data, err := proto.Marshal(cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, data []byte) {
		cmd := new(netfencev1.ControlCommand)
		if proto.Unmarshal(data, cmd) != nil {
			return // gRPC ends the stream
		}
		store, err := state.Open(filepath.Join(t.TempDir(), "state.db"), "boot", state.Options{Log: log})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		for i, a := range []state.Attachment{
			{ID: "live", Policy: denylist(), PolicyRevision: "r1"}, {ID: "pending", Pending: true}, {ID: "other", Policy: denylist()},
		} {
			a.Target = target.Target{Type: target.Cgroup, CgroupID: uint64(i + 1), Name: "/" + a.ID}
			if _, _, err := store.Create(a); err != nil {
				t.Fatal(err)
			}
		}
		before := store.List()
		ctx, cancel := context.WithCancel(t.Context())
		kernel := &kernel{store: store, gate: make(chan struct{}, 1)}
		kernel.gate <- struct{}{}
		ended := make(chan error, 1)
		go func() { ended <- kernel.run(ctx) }()

		client, err := New(Options{
			Dial: func(context.Context, string) (Conn, error) { return nil, errEnded }, Addresses: []string{"plane:1"}, Store: store, DaemonID: "daemon", Log: log,
		})
		if err != nil {
			t.Fatal(err)
		}
		stream := &sent{}
		s := &session{
			c: client, stream: stream, cancel: func(err error) { t.Error(err) },
			sending: make(chan struct{}, 1), waits: semaphore.NewWeighted(1),
		}
		s.handle(ctx, cmd)
		s.work.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}

		var code netfencev1.CommandCode
		results := 0
		for _, event := range stream.events {
			if result := event.GetResult(); result != nil {
				results++
				code = result.GetCode()
				if result.GetNumber() != cmd.GetNumber() || (len(result.GetViolations()) == 0) != (code != refused) && code != applied {
					t.Errorf("answer %v", result)
				}
			}
			if size := proto.Size(event); size > maxEventBytes {
				t.Errorf("event of %d bytes", size)
			}
		}
		if want := min(cmd.GetNumber(), 1); uint64(results) != want {
			t.Errorf("%d answers to number %d", results, cmd.GetNumber())
		}
		after := store.List()
		if len(after) != len(before) {
			t.Fatalf("%d attachments", len(after))
		}
		for i, a := range after {
			if err := a.Policy.Validate(policy.Limits{}); err != nil {
				t.Errorf("%s: %v", a.ID, err)
			}
			changed := !reflect.DeepEqual(a, before[i])
			if changed && (a.ID != cmd.GetId() || results == 1 && code != applied) {
				t.Errorf("%s changed by %v, answered %v", a.ID, cmd, code)
			}
			if a.Pending && a.Policy.Mode != policy.ModeBlockAll {
				t.Errorf("pending and %v", a.Policy.Mode)
			}
		}
	})
}
