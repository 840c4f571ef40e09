// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"fmt"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datagram"
	"github.com/netfence/netfence/internal/dnsproxy"
)

// packets is a UDP socket for every address, that knows by IP_PKTINFO or
// IPV6_PKTINFO (ip(7), ipv6(7)) which one a query came to, and answers from it.
type packets struct {
	conn  *datagram.Conn
	port  uint16
	v6    bool
	where *place
}

var controlSpace = max(unix.CmsgSpace(unix.SizeofInet4Pktinfo), unix.CmsgSpace(unix.SizeofInet6Pktinfo))

// queriesRead are taken at once, and answersSent sent, if there are so many. The server
// makes no larger answers.
const (
	queriesRead = 32
	answersSent = 16
	answerBytes = 1280
)

var (
	reads = sync.Pool{New: func() any { return datagram.New(queriesRead, dnsproxy.MaxQuery, controlSpace, false) }}
	// writes are batches for IPv4, then for IPv6.
	writes = [2]sync.Pool{
		{New: func() any { return datagram.New(answersSent, answerBytes, controlSpace, false) }},
		{New: func() any { return datagram.New(answersSent, answerBytes, controlSpace, true) }},
	}
)

// ReadQueries leaves out what is no query of an attachment: what is too long, or
// empty, or from nobody.
func (p *packets) ReadQueries(each func(b []byte, from dnsproxy.Peer)) (more bool, err error) {
	in := reads.Get().(*datagram.Batch)
	defer reads.Put(in)
	n, err := in.Receive(p.conn)
	if err != nil {
		return false, fmt.Errorf("read DNS queries: %w", err)
	}
	for i := range n {
		b, whole := in.Data(i)
		to, ok := destination(in.Control(i))
		if !whole || !ok || len(b) == 0 {
			continue
		}
		if peer, ok := p.where.peer(in.From(i), netip.AddrPortFrom(to, p.port)); ok {
			each(b, peer)
		}
	}
	return n == queriesRead, nil
}

// destination finds the header's destination among control messages.
func destination(control []byte) (netip.Addr, bool) {
	for len(control) >= unix.CmsgSpace(0) {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return netip.Addr{}, false
		}
		control = rest
		switch {
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			return netip.AddrFrom4(info.Addr), true
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			return netip.AddrFrom16(info.Addr), true
		}
	}
	return netip.Addr{}, false
}

// WriteAnswers answers from the addresses that were asked.
func (p *packets) WriteAnswers(answers []dnsproxy.Answer) error {
	family := 0
	if p.v6 {
		family = 1
	}
	out := writes[family].Get().(*datagram.Batch)
	defer writes[family].Put(out)
	var failed error
	note := func(_ int, err error) { failed = fmt.Errorf("answer DNS query: %w", err) }
	for _, a := range answers {
		control := p.source(a.To)
		if out.Add(a.Bytes, a.To.Client, control) {
			continue
		}
		out.Send(p.conn, note)
		if !out.Add(a.Bytes, a.To.Client, control) {
			note(0, unix.EMSGSIZE)
		}
	}
	out.Send(p.conn, note)
	return failed
}

// source is the control message that an answer comes from the address that was asked by.
func (p *packets) source(to dnsproxy.Peer) []byte {
	if p.v6 {
		// An address of the link, as routers announce for their resolver, needs the device as well.
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: to.Server.Addr().As16(), Ifindex: p.where.ifindex})
	}
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: to.Server.Addr().As4()})
}

// Watch waits for queries.
func (p *packets) Watch(by *datagram.Poller, ready func() bool) error { return p.conn.Watch(by, ready) }

// Close makes ReadQueries return net.ErrClosed.
func (p *packets) Close() error { return p.conn.Close() }
