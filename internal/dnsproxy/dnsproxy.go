// SPDX-License-Identifier: Apache-2.0

// Package dnsproxy answers the DNS queries of attachments: it decides by name,
// asks upstream, has the kernel learn what the answer permits, and only then
// answers.
package dnsproxy

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/netfence/netfence/internal/datagram"
	"github.com/netfence/netfence/internal/datapath"
)

// Kernel is what the server drives; *datapath.Datapath is one.
type Kernel interface {
	// Chain returns the attachments that a query for index concerns, the
	// innermost first: each must allow the name, and each learns. None: the
	// index is nobody's, or nothing is in force for it yet.
	Chain(index uint32) []datapath.Member
	// Learn returns when the kernel holds every address of every lesson, or,
	// with an error, nothing of them. datapath.ErrStale: decide anew;
	// datapath.ErrFull: a limit is reached; datapath.ErrBusy, unless it may wait:
	// somebody changes what is in force for one of them.
	Learn(lessons []datapath.Lesson, wait bool) error
	// MTU returns what a packet may be to leave by the device of index; 0: any size.
	MTU(index uint32) (int, error)
	// Original returns the server that a query of a cgroup was for; the zero AddrPort:
	// that is not known.
	Original(q datapath.CgroupQuery) (netip.AddrPort, error)
}

// Remote decides queries in proxy mode.
type Remote interface {
	// QueryDNS asks about name, which is spelt as the client spelt it and has its
	// final dot, and a record type by its mnemonic. An error is SERVFAIL for the client.
	QueryDNS(ctx context.Context, id, name, qtype string) (RemoteAnswer, error)
}

// RemoteAnswer is what a control plane says to a query.
type RemoteAnswer struct {
	Allow bool
	Learn bool          // the addresses of the answer are learned
	Addrs []netip.Addr  // the answer; none: upstream's
	TTL   time.Duration // of Addrs
}

// Peer is who asks. The zero value is nobody.
type Peer struct {
	Index  uint32         // the attachment's
	Client netip.AddrPort // whom to answer, as the socket sees it
	Server netip.AddrPort // the address that the query came to, from which it is answered
	Origin Origin
	Netns  int // of OtherNetns, as datapath.CgroupQuery has it
}

// Origin is where a query comes from.
type Origin uint8

const (
	Interface  Origin = iota // Server is whom it was for
	Cgroup                   // Server is a DNS address, and the query from a socket in this process's network namespace
	OtherNetns               // likewise, but from one in another
)

// Answer is one datagram for who asked.
type Answer struct {
	Bytes []byte
	To    Peer
}

// PacketConn is a datagram socket on which the queries of attachments arrive.
type PacketConn interface {
	// Watch has p call ready when there is something to be read, until ready returns
	// false or the socket is closed.
	Watch(p *datagram.Poller, ready func() bool) error
	// ReadQueries calls each for every datagram that is there and is an
	// attachment's, up to some number: then there may be more. b is each's until it returns.
	ReadQueries(each func(b []byte, from Peer)) (more bool, err error)
	// WriteAnswers sends answers, each from the address that was asked. One that cannot
	// be sent keeps none of the others; an error is of one of them.
	WriteAnswers(answers []Answer) error
	Close() error
}

// Listener is where their TCP connections arrive.
type Listener interface {
	Accept() (net.Conn, Peer, error)
	Close() error
}
