// SPDX-License-Identifier: Apache-2.0

// Package controlplane_test lets the real daemon talk to control planes that are processes of their own: to one built
// from nothing but the published messages, and to one that knows our additions. The control plane decides nothing by
// itself; each test says what it sends and looks at what the daemon tells it, at what the command line shows, and, where
// a verdict matters, at packets.
package controlplane_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// plane is the test's hold on a peer.
type plane struct {
	Address string

	t       *testing.T
	ns      *testenv.NS
	from    string
	cmd     *exec.Cmd
	in      *json.Encoder
	lines   chan told
	ready   chan struct{} // an answer to QueryDns has been taken
	stream  int           // the newest that the test has heard from
	number  uint64        // of the command sent last, by checkResult
	unknown []string      // fields, over all streams

	mu      sync.Mutex
	queries []dnsQuery // in the order in which they came
}

// dnsQuery is a DnsQueryRequest as the peer tells it.
type dnsQuery struct {
	ID, Domain string
	QueryType  string `json:"query_type"`
}

// newPlane starts a peer in the namespace.
func newPlane(t *testing.T, ns *testenv.NS, builtFrom string) *plane {
	t.Helper()
	p := &plane{t: t, ns: ns, from: builtFrom, Address: "127.0.0.1:0"}
	p.Start()
	t.Cleanup(p.checkUnknown)
	return p
}

// Start starts the process: where it was before, if it was.
func (p *plane) Start() {
	p.t.Helper()
	p.cmd = peer.Command(p.Address, p.from)
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	testenv.Start(p.t, p.cmd, p.ns, nil)
	p.in, p.stream = json.NewEncoder(stdin), 0
	p.lines = make(chan told, 1024) // more than any test has; it drops nothing, the process would wait
	p.ready = make(chan struct{}, 1)
	go p.read(stdout, p.lines)
	p.Address = p.line(testenv.Patience).Address
}

// read sorts what the peer tells. Queries come when they like, so they do not stand in the way of events.
func (p *plane) read(out io.Reader, lines chan<- told) {
	defer close(lines)
	for decoder := json.NewDecoder(out); ; {
		var line told
		if decoder.Decode(&line) != nil {
			return // the process ended
		}
		switch {
		case line.Ready != "":
			p.ready <- struct{}{}
		case line.Query != nil:
			p.heard(line)
		default:
			lines <- line
		}
	}
}

func (p *plane) heard(line told) {
	var q dnsQuery
	if err := json.Unmarshal(line.Query, &q); err != nil {
		panic(err) // of a message that was just printed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queries = append(p.queries, q)
	p.unknown = append(p.unknown, line.Unknown...)
}

// Queries returns the queries so far, and forgets them.
func (p *plane) Queries() []dnsQuery {
	p.mu.Lock()
	defer p.mu.Unlock()
	queries := p.queries
	p.queries = nil
	return queries
}

// Answer has QueryDns answer with a DnsQueryResponse for a domain, with its final dot, from now on; with "" it never
// answers. Queries for a domain that no Answer was given for fail.
func (p *plane) Answer(domain, response string) {
	p.t.Helper()
	answer := &dnsAnswer{Domain: domain}
	if response != "" {
		answer.Response = json.RawMessage(response)
	}
	p.order(order{Answer: answer})
	select {
	case <-p.ready:
	case <-time.After(testenv.Patience):
		p.t.Fatalf("the control plane does not take an answer")
	}
}

// Stop kills the process, and with it every stream.
func (p *plane) Stop() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	for range p.lines { // until it is gone
	}
	_ = p.cmd.Wait() // killed, as it says
}

func (p *plane) line(patience time.Duration) told {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			p.t.Fatal("the control plane ended")
		}
		return line
	case <-time.After(patience):
		p.t.Fatalf("the control plane heard nothing for %s", patience)
	}
	panic("unreachable")
}

// next returns the next event, of whatever kind.
func (p *plane) next(patience time.Duration) event {
	p.t.Helper()
	line := p.line(patience)
	if line.Ended != "" {
		p.t.Fatalf("stream %d ended: %s", line.Stream, line.Ended)
	}
	p.stream = max(p.stream, line.Stream)
	p.note(line.Unknown)
	var e event
	if err := json.Unmarshal(line.Event, &e); err != nil {
		p.t.Fatalf("event %s: %v", line.Event, err)
	}
	e.Text = string(line.Event)
	return e
}

// Next returns the next event. Heartbeats come when they like, so they are not among them.
func (p *plane) Next() event {
	p.t.Helper()
	for {
		if e := p.next(testenv.Patience); e.Heartbeat == nil {
			return e
		}
	}
}

// Sync waits for the daemon to connect and say what it has.
func (p *plane) Sync() *syncRequest {
	p.t.Helper()
	for {
		e := p.Next()
		if e.Sync != nil {
			return e.Sync
		}
		p.t.Fatalf("got %s, want a SyncRequest", e.Text)
	}
}

// Connect is Sync, answered.
func (p *plane) Connect() *syncRequest {
	p.t.Helper()
	s := p.Sync()
	p.Send(`{"sync_ack": {}}`)
	return s
}

// Subscribed waits for an attachment to be announced.
func (p *plane) Subscribed() *attachment {
	p.t.Helper()
	e := p.Next()
	if e.Subscribed == nil {
		p.t.Fatalf("got %s, want Subscribed", e.Text)
	}
	return e.Subscribed
}

// Unsubscribed waits for an attachment to be given up.
func (p *plane) Unsubscribed() *unsubscribed {
	p.t.Helper()
	e := p.Next()
	if e.Unsubscribed == nil {
		p.t.Fatalf("got %s, want Unsubscribed", e.Text)
	}
	return e.Unsubscribed
}

// Send sends a ControlCommand, in JSON with the names of the .proto files, on the newest stream.
func (p *plane) Send(format string, args ...any) {
	p.t.Helper()
	p.order(order{Stream: p.stream, Command: json.RawMessage(fmt.Sprintf(format, args...))})
}

// End ends the newest stream.
func (p *plane) End(code codes.Code) {
	p.t.Helper()
	p.order(order{Stream: p.stream, End: code})
	p.Ended()
}

// Ended waits until the newest stream is over. What the daemon said before is not looked at.
func (p *plane) Ended() {
	p.t.Helper()
	for line := p.line(testenv.Patience); line.Ended == ""; line = p.line(testenv.Patience) {
		p.note(line.Unknown)
	}
}

func (p *plane) note(unknown []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unknown = append(p.unknown, unknown...)
}

func (p *plane) order(o order) {
	p.t.Helper()
	if err := p.in.Encode(o); err != nil {
		p.t.Fatalf("control plane: %v", err)
	}
}

// allowed are the fields that a published peer gets and does not know. They are in SyncRequest, which is sent before
// either side knows the other: Hello, the named policies of a peer that had them, and of each attachment what is in force
// and its DNS address.
var allowed = []string{"sync.100", "sync.101", "sync.attachments.100", "sync.attachments.101"}

func (p *plane) checkUnknown() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, field := range p.unknown {
		if p.from != builtFromPublished || !slices.Contains(allowed, field) {
			p.t.Errorf("the control plane was sent %s, which it does not know", field)
		}
	}
}
