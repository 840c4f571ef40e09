// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
)

// controlPlane serves the folder to daemons.
type controlPlane struct {
	netfencev1.UnimplementedControlPlaneServer
	folder *Folder
}

type connectStream = grpc.BidiStreamingServer[netfencev1.DaemonEvent, netfencev1.ControlCommand]

// peer is one daemon on one stream. The reader notes what it has, the writer sends what differs:
// nothing is queued between the two.
type peer struct {
	folder *Folder

	mu          sync.Mutex
	attachments map[string]*attachment
	fresh       map[string]*attachment // those that the writer has not looked at yet
	seen        *snapshot              // by which it looked at the others
	wake        chan struct{}          // holds one
}

// attachment is what the folder knows of one of a daemon's.
type attachment struct {
	metadata map[string]string
	pending  bool   // its SubscribedAck is due
	revision string // last sent, or in force as the daemon says
	// foreign: what is in force did not come from the files as they are. While a file that was broken
	// from the start may have decided it, it is left alone.
	foreign bool
	source  string // that decided what was sent last
}

// command is one that is due.
type command struct {
	id      string
	pending bool
	decision
}

// Connect answers a daemon.
func (c *controlPlane) Connect(stream connectStream) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	request := first.GetSync()
	if request == nil {
		return status.Error(codes.InvalidArgument, "the first event of a stream is SyncRequest")
	}
	p := &peer{
		folder:      c.folder,
		attachments: make(map[string]*attachment),
		fresh:       make(map[string]*attachment),
		wake:        make(chan struct{}, 1),
	}
	for _, a := range request.GetAttachments() {
		p.add(a.GetId(), a.GetMetadata(), a.GetApplied())
	}
	ack := &netfencev1.SyncAck{Welcome: &netfencev1.Welcome{Features: wire.Features(), ServerId: "policy-folder"}}
	if err := stream.Send(&netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_SyncAck{SyncAck: ack}}); err != nil {
		return err
	}
	// The reader is the handler: it ends with the stream, and the writer with it.
	ctx, cancel := context.WithCancel(stream.Context())
	var writing sync.WaitGroup
	defer writing.Wait()
	defer cancel()
	writing.Go(func() { p.write(ctx, stream) })
	return p.read(stream)
}

// read notes events until the stream ends.
func (p *peer) read(stream connectStream) error {
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch event := event.GetEvent().(type) {
		case *netfencev1.DaemonEvent_Subscribed:
			p.add(event.Subscribed.GetId(), event.Subscribed.GetMetadata(), event.Subscribed.GetApplied())
		case *netfencev1.DaemonEvent_Unsubscribed:
			p.remove(event.Unsubscribed.GetId())
		case *netfencev1.DaemonEvent_Result:
			p.result(event.Result)
		}
	}
}

// write sends what is due, whenever the daemon or the folder has something new, until the stream ends.
func (p *peer) write(ctx context.Context, stream connectStream) {
	var number uint64
	for {
		snapshot, changed := p.folder.watched()
		for _, due := range p.due(snapshot) {
			number++
			if stream.Send(due.message(number)) != nil {
				// The stream is broken, which ends the reader too.
				return
			}
		}
		select {
		case <-changed:
		case <-p.wake:
		case <-ctx.Done():
			return
		}
	}
}

// message is the numbered command.
func (c command) message(number uint64) *netfencev1.ControlCommand {
	m := &netfencev1.ControlCommand{Id: c.id, Number: number, Revision: c.revision}
	if c.pending {
		m.Command = &netfencev1.ControlCommand_SubscribedAck{SubscribedAck: wire.SubscribedAck(c.update)}
	} else {
		m.Command = &netfencev1.ControlCommand_BulkUpdate{BulkUpdate: c.update}
	}
	return m
}

// add notes an attachment. Without applied it is new, and waits for its first policy.
func (p *peer) add(id string, metadata map[string]string, applied *netfencev1.Applied) {
	decided := p.folder.decide(p.folder.current(), metadata)
	a := &attachment{
		metadata: metadata,
		pending:  applied == nil,
		revision: applied.GetRevision(),
		foreign:  applied.GetRevision() != decided.revision,
		source:   decided.source,
	}
	p.mu.Lock()
	p.attachments[id] = a
	p.fresh[id] = a
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *peer) remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.attachments, id)
	delete(p.fresh, id)
}

// due is what the daemon does not have yet, in the order of ids, which is that of attaching. It
// counts as sent: the stream breaks if it is not, and the next one begins with what is in force.
func (p *peer) due(s *snapshot) []command {
	p.mu.Lock()
	defer p.mu.Unlock()
	look := p.fresh
	if s != p.seen {
		look = p.attachments
	}
	var all []command
	for id, a := range look {
		if len(s.blocked) > 0 && (a.pending || a.foreign) {
			continue
		}
		decided := p.folder.decide(s, a.metadata)
		if !a.pending && a.revision == decided.revision {
			continue
		}
		all = append(all, command{id: id, pending: a.pending, decision: decided})
		a.pending, a.foreign, a.revision, a.source = false, false, decided.revision, decided.source
	}
	clear(p.fresh)
	p.seen = s
	slices.SortFunc(all, func(a, b command) int { return strings.Compare(a.id, b.id) })
	return all
}

// result tells the operator which file the kernel or the daemon did not take. The daemon keeps it with
// the attachment; sending the same again would be refused again.
func (p *peer) result(r *netfencev1.CommandResult) {
	if r.GetCode() != netfencev1.CommandCode_COMMAND_CODE_REFUSED {
		return
	}
	p.mu.Lock()
	a := p.attachments[r.GetId()]
	source := ""
	if a != nil {
		source = a.source
	}
	p.mu.Unlock()
	for _, v := range r.GetViolations() {
		p.folder.log.Error("policy refused; the attachment keeps what is in force", "attachment", r.GetId(),
			"policy", source, "field", v.GetField(), "value", v.GetValue(), "expected", v.GetExpected())
	}
}
