// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	_ "github.com/netfence/netfence/api/netfence/v1" // what a peer of "ours" speaks
	"github.com/netfence/netfence/internal/testenv"
)

// peer is a control plane as a process of its own that decides nothing: it tells on stdout what daemons send, as JSON,
// and sends what it is told on stdin. Its arguments are where to listen and which messages it was built from.
var peer = testenv.NewFunc("control-plane", func(args []string) error {
	return runPeer(args[0], args[1], os.Stdin, os.Stdout)
})

// What a peer may be built from.
const (
	builtFromPublished = "published"
	builtFromOurs      = "ours"
)

// told is one line of what the peer tells.
type told struct {
	Address string          `json:",omitempty"` // first of all
	Stream  int             `json:",omitempty"` // counted from 1
	Event   json.RawMessage `json:",omitempty"`
	// Unknown are the fields of the event that the peer does not know: "sync.attachments.100".
	Unknown []string `json:",omitempty"`
	Ended   string   `json:",omitempty"` // why there is nothing more on the stream
	// Query is a DnsQueryRequest.
	Query json.RawMessage `json:",omitempty"`
	// Ready is the domain of an order's Answer that counts from now on.
	Ready string `json:",omitempty"`
}

// order is one line of what the peer is told: a command to send, the code to end the stream with, or what to answer to
// QueryDns from now on.
type order struct {
	Stream  int
	Command json.RawMessage `json:",omitempty"`
	End     codes.Code      `json:",omitempty"`
	Answer  *dnsAnswer      `json:",omitempty"`
}

// dnsAnswer is the answer for a domain, in lower case with its final dot. Queries for others fail.
type dnsAnswer struct {
	Domain   string
	Response json.RawMessage `json:",omitempty"` // a DnsQueryResponse; none: the query is never answered
}

type peerServer struct {
	event, command, query, response protoreflect.MessageDescriptor

	mu      sync.Mutex
	out     *json.Encoder
	streams []*peerStream
	answers map[string]*dynamicpb.Message // nil: no answer at all
}

type peerStream struct {
	grpc.ServerStream
	number int
	end    chan error
}

func runPeer(address, builtFrom string, in io.Reader, out io.Writer) error {
	p := &peerServer{out: json.NewEncoder(out), answers: map[string]*dynamicpb.Message{}}
	if err := p.learn(builtFrom); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "netfence.v1.ControlPlane",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Connect", Handler: func(_ any, s grpc.ServerStream) error { return p.connect(s) },
			ServerStreams: true, ClientStreams: true,
		}},
		Methods: []grpc.MethodDesc{{
			MethodName: "QueryDns",
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return p.queryDNS(ctx, decode)
			},
		}},
	}, nil)
	go func() { _ = server.Serve(listener) }() // ends with the process
	p.tell(told{Address: listener.Addr().String()})

	for orders := json.NewDecoder(in); ; {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := p.obey(o); err != nil {
			return err
		}
	}
}

func (p *peerServer) learn(builtFrom string) (err error) {
	find := protoregistry.GlobalFiles.FindDescriptorByName
	if builtFrom == builtFromPublished {
		file, err := published()
		if err != nil {
			return err
		}
		find = func(name protoreflect.FullName) (protoreflect.Descriptor, error) {
			return file.Messages().ByName(name.Name()), nil
		}
	}
	for name, descriptor := range map[protoreflect.FullName]*protoreflect.MessageDescriptor{
		"netfence.v1.DaemonEvent": &p.event, "netfence.v1.ControlCommand": &p.command,
		"netfence.v1.DnsQueryRequest": &p.query, "netfence.v1.DnsQueryResponse": &p.response,
	} {
		found, err := find(name)
		if err != nil {
			return err
		}
		*descriptor = found.(protoreflect.MessageDescriptor)
	}
	return nil
}

func (p *peerServer) connect(stream grpc.ServerStream) error {
	p.mu.Lock()
	s := &peerStream{ServerStream: stream, number: len(p.streams) + 1, end: make(chan error, 1)}
	p.streams = append(p.streams, s)
	p.mu.Unlock()
	go func() {
		for {
			event := dynamicpb.NewMessage(p.event)
			if err := s.RecvMsg(event); err != nil {
				p.tell(told{Stream: s.number, Ended: err.Error()})
				return
			}
			p.tell(told{Stream: s.number, Event: marshal(event), Unknown: unknown("", event)})
		}
	}()
	select {
	case err := <-s.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func (p *peerServer) tell(line told) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.out.Encode(line); err != nil {
		panic(err) // the test is gone
	}
}

func (p *peerServer) queryDNS(ctx context.Context, decode func(any) error) (any, error) {
	query := dynamicpb.NewMessage(p.query)
	if err := decode(query); err != nil {
		return nil, err
	}
	p.tell(told{Query: marshal(query), Unknown: unknown("query.", query)})
	domain := strings.ToLower(query.Get(p.query.Fields().ByName("domain")).String())
	p.mu.Lock()
	answer, known := p.answers[domain]
	p.mu.Unlock()
	if !known {
		return nil, status.Error(codes.NotFound, "the test has no answer for "+domain)
	}
	if answer == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return answer, nil
}

// learnAnswer takes what the test wants QueryDns to say.
func (p *peerServer) learnAnswer(a dnsAnswer) error {
	var answer *dynamicpb.Message
	if a.Response != nil {
		answer = dynamicpb.NewMessage(p.response)
		if err := protojson.Unmarshal(a.Response, answer); err != nil {
			return fmt.Errorf("%s: %w", a.Response, err)
		}
	}
	p.mu.Lock()
	p.answers[a.Domain] = answer
	p.mu.Unlock()
	p.tell(told{Ready: a.Domain})
	return nil
}

func (p *peerServer) obey(o order) error {
	if o.Answer != nil {
		return p.learnAnswer(*o.Answer)
	}
	p.mu.Lock()
	if o.Stream < 1 || o.Stream > len(p.streams) {
		p.mu.Unlock()
		return fmt.Errorf("there is no stream %d", o.Stream)
	}
	s := p.streams[o.Stream-1]
	p.mu.Unlock()
	if o.End != codes.OK {
		s.end <- status.Error(o.End, "as the test wants it")
		return nil
	}
	command := dynamicpb.NewMessage(p.command)
	if err := protojson.Unmarshal(o.Command, command); err != nil {
		return fmt.Errorf("%s: %w", o.Command, err)
	}
	_ = s.SendMsg(command) // a stream that is over says so where it is read
	return nil
}

func marshal(m *dynamicpb.Message) json.RawMessage {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		panic(err) // a message that was just parsed
	}
	return text
}

// unknown lists the fields that the peer's messages do not have, without repetition.
func unknown(path string, m protoreflect.Message) []string {
	var found []string
	note := func(fields ...string) {
		for _, field := range fields {
			if !slices.Contains(found, field) {
				found = append(found, field)
			}
		}
	}
	for rest := m.GetUnknown(); len(rest) > 0; {
		number, _, n := protowire.ConsumeField(rest)
		note(path + strconv.Itoa(int(number)))
		rest = rest[n:]
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch below := path + string(f.Name()) + "."; {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				note(unknown(below, v.List().Get(i).Message())...)
			}
		default:
			note(unknown(below, v.Message())...)
		}
		return true
	})
	return found
}
