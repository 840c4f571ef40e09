// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
)

// host is a daemon that holds no policy, only what the protocol asks it to remember: revisions.
type host struct {
	id          string
	attachments []*netfencev1.Attachment
	byID        map[string]*netfencev1.Attachment
	named       map[string]string // revision by name

	conn    *grpc.ClientConn
	stream  grpc.BidiStreamingClient[netfencev1.DaemonEvent, netfencev1.ControlCommand]
	streams uint64
	ended   chan struct{}
}

// fleet counts what its hosts were sent.
type fleet struct {
	hosts    []*host
	address  string
	commands atomic.Int64 // without SyncAck
}

func newFleet(address string, hosts, each int) *fleet {
	f := &fleet{address: address}
	for i := range hosts {
		h := &host{id: fmt.Sprintf("host-%04d", i), byID: make(map[string]*netfencev1.Attachment), named: make(map[string]string)}
		for n := range each {
			a := &netfencev1.Attachment{
				Id: fmt.Sprintf("0199a0b0-%04x-7000-8000-%012x", i, n), Target: fmt.Sprintf("/sys/fs/cgroup/jobs/job-%d", n),
				Type: netfencev1.AttachmentType_ATTACHMENT_TYPE_CGROUP, Mode: netfencev1.PolicyMode_POLICY_MODE_BLOCK_ALL,
				Metadata:   map[string]string{"tenant": fmt.Sprintf("tenant-%d", i%50), "job": fmt.Sprint(n)},
				DnsAddress: "127.128.0.1:53", Applied: new(netfencev1.Applied),
			}
			h.attachments = append(h.attachments, a)
			h.byID[a.Id] = a
		}
		f.hosts = append(f.hosts, h)
	}
	return f
}

// connect connects all at once, and returns when each was answered.
func (f *fleet) connect(ctx context.Context) error {
	errs := make(chan error, len(f.hosts))
	for _, h := range f.hosts {
		go func() { errs <- h.connect(ctx, f) }()
	}
	for range f.hosts {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

// disconnect breaks every connection.
func (f *fleet) disconnect() {
	var closing sync.WaitGroup
	for _, h := range f.hosts {
		closing.Go(func() {
			h.conn.Close()
			<-h.ended
		})
	}
	closing.Wait()
}

func (h *host) connect(ctx context.Context, f *fleet) error {
	conn, err := grpc.NewClient("passthrough:///"+f.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Minute, Backoff: backoff.DefaultConfig}))
	if err != nil {
		return err
	}
	stream, err := netfencev1.NewControlPlaneClient(conn).Connect(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	h.streams++
	hello := &netfencev1.Hello{Features: wire.Features(), InstanceId: h.id, StreamSeq: h.streams, MaxCommandBytes: 16 << 20}
	request := &netfencev1.SyncRequest{DaemonId: h.id, Hostname: h.id, Attachments: h.attachments, Hello: hello}
	for name, revision := range h.named {
		request.Policies = append(request.Policies, &netfencev1.PolicyRef{Name: name, Revision: revision})
	}
	if err := stream.Send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Sync{Sync: request}}); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil { // SyncAck
		return err
	}
	h.conn, h.stream, h.ended = conn, stream, make(chan struct{})
	go h.receive(f)
	return nil
}

// receive confirms whatever it is commanded.
func (h *host) receive(f *fleet) {
	defer close(h.ended)
	for {
		command, err := h.stream.Recv()
		if err != nil {
			return
		}
		f.commands.Add(1)
		if put := command.GetPutPolicy(); put != nil {
			h.named[put.GetName()] = put.GetRevision()
			for _, a := range h.attachments {
				if a.Applied.PolicyName == put.GetName() {
					a.Applied.Revision = put.GetRevision()
				}
			}
		} else if name := command.GetDeletePolicy(); name != "" {
			delete(h.named, name)
		} else if a := h.byID[command.GetId()]; a != nil {
			a.Applied.Revision, a.Applied.PolicyName = command.GetRevision(), command.GetUsePolicy().GetName()
		}
		if command.GetNumber() == 0 {
			continue
		}
		result := &netfencev1.CommandResult{
			Number: command.GetNumber(), Id: command.GetId(), Revision: command.GetRevision(),
			Code: netfencev1.CommandCode_COMMAND_CODE_APPLIED,
		}
		if h.stream.Send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Result{Result: result}}) != nil {
			return
		}
	}
}
