// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net"
	"net/netip"
	"sync"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datagram"
)

// datagrams and connections stand for interception: all that arrives is of one
// attachment.
type datagrams struct {
	*net.UDPConn
	index uint32
}

var (
	reads  = datagram.NewPool(32, MaxQuery, 0)
	writes = sync.Pool{New: func() any { return datagram.New(32, dns.MaxMsgSize, 0, false) }}
)

func (c datagrams) ReadQueries(each func([]byte, Peer)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	in, n, err := reads.Receive(raw)
	if err != nil {
		return err
	}
	defer reads.Put(in)
	for i := range n {
		b, _ := in.Data(i)
		each(b, Peer{Index: c.index, Client: in.From(i)})
	}
	return nil
}

func (c datagrams) WriteAnswers(answers []Answer) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	out := writes.Get().(*datagram.Batch)
	defer writes.Put(out)
	for _, a := range answers {
		if out.Full() {
			out.Send(raw, nil)
		}
		out.Add(a.Bytes, a.To.Client, nil)
	}
	out.Send(raw, nil)
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
