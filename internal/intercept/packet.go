// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/dnsproxy"
)

// packets is a UDP socket for every address, that knows by IP_PKTINFO or
// IPV6_PKTINFO (ip(7), ipv6(7)) which one a query came to, and answers from it.
type packets struct {
	conn  *net.UDPConn
	port  uint16
	v6    bool
	where *place
}

var controlSpace = max(unix.CmsgSpace(unix.SizeofInet4Pktinfo), unix.CmsgSpace(unix.SizeofInet6Pktinfo))

// ReadQuery leaves out what is no query of an attachment: what is too long for
// b, or empty, or from nobody.
func (p *packets) ReadQuery(b []byte) (int, dnsproxy.Peer, error) {
	control := make([]byte, controlSpace)
	for {
		n, controls, flags, client, err := p.conn.ReadMsgUDPAddrPort(b, control)
		if err != nil {
			return 0, dnsproxy.Peer{}, fmt.Errorf("read DNS query: %w", err)
		}
		if n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			continue
		}
		to, ok := destination(control[:controls])
		if !ok {
			continue
		}
		peer, ok := p.where.peer(client, netip.AddrPortFrom(to, p.port))
		if ok {
			return n, peer, nil
		}
	}
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

// WriteAnswer answers from the address that was asked.
func (p *packets) WriteAnswer(b []byte, to dnsproxy.Peer) error {
	var control []byte
	if p.v6 {
		// An address of the link, as routers announce for their resolver, needs the device as well.
		control = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: to.Server.Addr().As16(), Ifindex: p.where.ifindex})
	} else {
		control = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: to.Server.Addr().As4()})
	}
	if _, _, err := p.conn.WriteMsgUDPAddrPort(b, control, to.Client); err != nil {
		return fmt.Errorf("answer DNS query: %w", err)
	}
	return nil
}

// Close makes ReadQuery return net.ErrClosed.
func (p *packets) Close() error { return p.conn.Close() }
