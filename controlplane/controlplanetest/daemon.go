// SPDX-License-Identifier: Apache-2.0

package controlplanetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// Patience is how long a test waits for what must happen.
const Patience = 20 * time.Second

// Config says what a daemon is.
type Config struct {
	ID       string
	Hostname string
	Metadata map[string]string
	Token    string // sent as bearer token
	// Published: it knows no more than the published protocol, so it announces nothing and tells no results.
	Published bool
	// Without are features that it does not have: "ports", "named_policies".
	Without []string
	// MaxCommandBytes it takes. 0: 16 MiB.
	MaxCommandBytes int
}

// Daemon stands for a netfenced: it has attachments, holds policies, and answers what became of each command. Its methods
// may be called from any goroutine.
type Daemon struct {
	config   Config
	conn     grpc.ClientConnInterface
	instance string

	mu          sync.Mutex
	stream      *stream // nil: not connected
	latest      *stream // the same, also when it has ended
	streams     uint64
	lastError   string
	attachments map[string]*attachment
	named       map[string]*held
	last        int // of the ids given
	refuse      func(id string, p *policy.Policy) error
	commands    map[string]int
	changed     chan struct{} // closed when something changes
}

// attachment is what the daemon has of one.
type attachment struct {
	target   string
	metadata map[string]string
	pending  bool
	held
	name string // of the named policy; empty: its own
	err  string
}

// held is a policy in force.
type held struct {
	policy   *policy.Policy
	revision string
}

// stream is one connection of the daemon to its control plane.
type stream struct {
	grpc   grpc.BidiStreamingClient[netfencev1.DaemonEvent, netfencev1.ControlCommand]
	cancel context.CancelFunc
	synced chan struct{}
	ended  chan struct{}
	err    error // why; set before ended is closed

	sending sync.Mutex
}

// Connect makes a daemon and connects it over conn, until the test ends or Disconnect. It fails the test when the control
// plane does not answer.
func Connect(t testing.TB, conn grpc.ClientConnInterface, config Config) *Daemon {
	t.Helper()
	d := New(conn, config)
	t.Cleanup(d.Disconnect)
	if err := d.Reconnect(); err != nil {
		t.Fatalf("daemon %s: %v", config.ID, err)
	}
	return d
}

// New makes a daemon that is not connected yet; see Reconnect.
func New(conn grpc.ClientConnInterface, config Config) *Daemon {
	return &Daemon{
		config: config, conn: conn, instance: config.ID + "-instance",
		attachments: make(map[string]*attachment), named: make(map[string]*held),
		commands: make(map[string]int), changed: make(chan struct{}),
	}
}

// Reconnect opens a stream, in place of the one that stands, and returns when the control plane has answered or ended it.
func (d *Daemon) Reconnect() error {
	d.Disconnect()
	ctx, cancel := context.WithCancel(context.Background())
	if d.config.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+d.config.Token)
	}
	connect, err := netfencev1.NewControlPlaneClient(d.conn).Connect(ctx, grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		cancel()
		return err
	}
	s := &stream{grpc: connect, cancel: cancel, synced: make(chan struct{}), ended: make(chan struct{})}
	d.mu.Lock()
	d.streams++
	d.stream, d.latest = s, s
	request := d.request()
	waiting := d.waiting()
	d.mu.Unlock()
	go d.receive(s)
	s.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Sync{Sync: request}})
	for _, event := range waiting {
		s.send(event)
	}
	select {
	case <-s.synced:
		return nil
	case <-s.ended:
		return s.err
	case <-time.After(Patience):
		d.Disconnect()
		return errors.New("no SyncAck")
	}
}

// Move reconnects to another control plane, or to the same after a restart.
func (d *Daemon) Move(conn grpc.ClientConnInterface) error {
	d.Disconnect()
	d.conn = conn
	return d.Reconnect()
}

// Disconnect breaks the stream, as a lost connection does. What is in force stays.
func (d *Daemon) Disconnect() {
	d.mu.Lock()
	s := d.stream
	d.mu.Unlock()
	if s != nil {
		s.cancel()
		<-s.ended
	}
}

// Ended returns when the control plane has ended the latest stream, and says why; nil: by GoAway.
func (d *Daemon) Ended() error {
	d.mu.Lock()
	s := d.latest
	d.mu.Unlock()
	if s != nil {
		<-s.ended
		return s.err
	}
	return nil
}

// request is the SyncRequest.
func (d *Daemon) request() *netfencev1.SyncRequest {
	m := &netfencev1.SyncRequest{DaemonId: d.config.ID, Hostname: d.config.Hostname, Metadata: d.config.Metadata}
	if !d.config.Published {
		m.Hello = &netfencev1.Hello{InstanceId: d.instance, StreamSeq: d.streams, LastStreamError: d.lastError}
		if m.Hello.MaxCommandBytes = uint64(d.config.MaxCommandBytes); d.config.MaxCommandBytes == 0 {
			m.Hello.MaxCommandBytes = 16 << 20
		}
		for _, feature := range wire.Features() {
			if !slices.Contains(d.config.Without, feature) {
				m.Hello.Features = append(m.Hello.Features, feature)
			}
		}
		for name, p := range d.named {
			m.Policies = append(m.Policies, &netfencev1.PolicyRef{Name: name, Revision: p.revision})
		}
	}
	for id, a := range d.attachments {
		if a.pending {
			continue
		}
		record := &netfencev1.Attachment{
			Id: id, Target: a.target, Type: netfencev1.AttachmentType_ATTACHMENT_TYPE_CGROUP, Metadata: a.metadata,
			Mode: wire.Mode(a.policy.Mode), DnsMode: wire.DNSMode(a.policy.DNS.Mode),
		}
		if !d.config.Published {
			record.Applied = &netfencev1.Applied{Revision: a.revision, PolicyName: a.name, Error: a.err}
		}
		m.Attachments = append(m.Attachments, record)
	}
	return m
}

// waiting are the announcements of those without a policy.
func (d *Daemon) waiting() []*netfencev1.DaemonEvent {
	var events []*netfencev1.DaemonEvent
	for id, a := range d.attachments {
		if a.pending {
			events = append(events, subscribed(id, a))
		}
	}
	return events
}

func subscribed(id string, a *attachment) *netfencev1.DaemonEvent {
	return &netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Subscribed{Subscribed: &netfencev1.Subscribed{
		Id: id, Target: a.target, Type: netfencev1.AttachmentType_ATTACHMENT_TYPE_CGROUP, Metadata: a.metadata,
		Mode: netfencev1.PolicyMode_POLICY_MODE_BLOCK_ALL,
	}}}
}

// send ignores errors: a stream that is over says so where it is read.
func (s *stream) send(event *netfencev1.DaemonEvent) {
	s.sending.Lock()
	defer s.sending.Unlock()
	_ = s.grpc.Send(event)
}

// Tell sends an event of the caller's making, such as no daemon in good faith would.
func (d *Daemon) Tell(event *netfencev1.DaemonEvent) {
	d.mu.Lock()
	s := d.stream
	d.mu.Unlock()
	if s != nil {
		s.send(event)
	}
}

// Subscribe announces an attachment and returns its id at once.
func (d *Daemon) Subscribe(target string, metadata map[string]string) string {
	d.mu.Lock()
	d.last++
	id := d.config.ID + "/" + strconv.Itoa(d.last)
	a := &attachment{target: target, metadata: metadata, pending: true, held: held{policy: policy.BlockAll()}}
	d.attachments[id] = a
	d.mu.Unlock()
	d.Tell(subscribed(id, a))
	return id
}

// Attach announces an attachment and returns its id when it has its first policy. It fails the test when it gets none.
func (d *Daemon) Attach(t testing.TB, target string, metadata map[string]string) string {
	t.Helper()
	id := d.Subscribe(target, metadata)
	d.Eventually(t, "a policy for "+target, func() bool {
		a := d.attachments[id]
		return a == nil || !a.pending
	})
	if d.Policy(id) == nil {
		t.Fatalf("attach %s: refused", target)
	}
	return id
}

// SetMetadata replaces the metadata of an attachment, and tells of it.
func (d *Daemon) SetMetadata(id string, metadata map[string]string) {
	d.mu.Lock()
	a := d.attachments[id]
	if a == nil {
		d.mu.Unlock()
		return
	}
	a.metadata = metadata
	event := subscribed(id, a)
	if !a.pending && !d.config.Published {
		event.GetSubscribed().Applied = &netfencev1.Applied{Revision: a.revision, PolicyName: a.name, Error: a.err}
	}
	d.mu.Unlock()
	d.Tell(event)
}

// Detach ends an attachment, as somebody on the host would.
func (d *Daemon) Detach(id string) {
	d.mu.Lock()
	delete(d.attachments, id)
	d.mu.Unlock()
	d.Tell(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Unsubscribed{Unsubscribed: &netfencev1.Unsubscribed{
		Id: id, Reason: netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_DETACHED,
	}}})
}

// Report sends a heartbeat with counters.
func (d *Daemon) Report(stats ...controlplane.Stats) {
	beat := new(netfencev1.Heartbeat)
	for _, s := range stats {
		beat.Stats = append(beat.Stats, &netfencev1.AttachmentStats{
			Id: s.ID, PacketsAllowed: s.PacketsAllowed, PacketsBlocked: s.PacketsBlocked,
			DnsQueriesAllowed: s.DNSQueriesAllowed, DnsQueriesBlocked: s.DNSQueriesBlocked,
		})
	}
	d.Tell(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Heartbeat{Heartbeat: beat}})
}

// Query asks what a name is in an attachment with dns.mode proxy.
func (d *Daemon) Query(ctx context.Context, id, name, qtype string) (*netfencev1.DnsQueryResponse, error) {
	if d.config.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+d.config.Token)
	}
	request := &netfencev1.DnsQueryRequest{Id: id, Domain: name, QueryType: qtype}
	return netfencev1.NewControlPlaneClient(d.conn).QueryDns(ctx, request)
}

// Policy is what is in force of the attachment; nil: there is no such attachment.
func (d *Daemon) Policy(id string) *policy.Policy {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.attachments[id]; a != nil {
		return a.policy
	}
	return nil
}

// Refuse has the daemon refuse the policies that f gives an error for, as a kernel would that has no room. Nil: none.
func (d *Daemon) Refuse(f func(id string, p *policy.Policy) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = f
}

// Commands counts the commands so far by the protocol's names for them: "bulk_update", "put_policy".
func (d *Daemon) Commands() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := make(map[string]int, len(d.commands))
	for name, n := range d.commands {
		counts[name] = n
	}
	return counts
}

// WaitPolicy returns when the attachment's policy is as want says. It fails the test when it does not become so.
func (d *Daemon) WaitPolicy(t testing.TB, id string, want func(*policy.Policy) bool) {
	t.Helper()
	d.Eventually(t, "policy of "+id, func() bool {
		a := d.attachments[id]
		return a != nil && want(a.policy)
	})
}

// Eventually returns when the condition holds, which is asked whenever something changes at the daemon, and must not call
// the daemon's methods.
func (d *Daemon) Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	timeout := time.After(Patience)
	for {
		d.mu.Lock()
		holds, changed := condition(), d.changed
		d.mu.Unlock()
		if holds {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("daemon %s: %s: not within %s", d.config.ID, what, Patience)
		}
	}
}

func (d *Daemon) String() string { return fmt.Sprintf("daemon %s", d.config.ID) }
