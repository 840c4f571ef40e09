// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datagram"
)

// datagrams and connections stand for interception: all that arrives is of one
// attachment.
type datagrams struct {
	*datagram.Conn
	index uint32
}

func newDatagrams(t testing.TB, pc net.PacketConn, index uint32) datagrams {
	t.Helper()
	c, err := datagram.NewConn(pc.(*net.UDPConn))
	if err != nil {
		t.Fatal(err)
	}
	return datagrams{c, index}
}

var (
	reads  = sync.Pool{New: func() any { return datagram.New(32, MaxQuery, 0, false) }}
	writes = sync.Pool{New: func() any { return datagram.New(32, dns.MaxMsgSize, 0, false) }}
)

func (c datagrams) ReadQueries(each func([]byte, Peer)) (more bool, err error) {
	in := reads.Get().(*datagram.Batch)
	defer reads.Put(in)
	n, err := in.Receive(c.Conn)
	if err != nil {
		return false, err
	}
	for i := range n {
		b, _ := in.Data(i)
		each(b, Peer{Index: c.index, Client: in.From(i)})
	}
	return n == 32, nil
}

func (c datagrams) WriteAnswers(answers []Answer) error {
	out := writes.Get().(*datagram.Batch)
	defer writes.Put(out)
	for _, a := range answers {
		if out.Full() {
			out.Send(c.Conn, nil)
		}
		out.Add(a.Bytes, a.To.Client, nil)
	}
	out.Send(c.Conn, nil)
	return nil
}

type connections struct {
	net.Listener
	index uint32
}

func (l connections) Accept() (net.Conn, Peer, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, Peer{}, err
	}
	return c, Peer{Index: l.index, Client: netip.MustParseAddrPort(c.RemoteAddr().String())}, nil
}
