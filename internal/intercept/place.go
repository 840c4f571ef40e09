// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datagram"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/dnsproxy"
)

// place is where sockets are, which decides how they know whose a query is.
type place struct {
	// host is set in the host's namespace, for its lo. Nil: every address is theirs, whosever it is. A socket bound to lo
	// would do for what comes by others, but has no IPv6 route to a client whose own address is on another device.
	host    *datapath.DNSFilter
	origin  dnsproxy.Origin         // of the queries that come there
	netns   int                     // of dnsproxy.OtherNetns
	ifindex uint32                  // that answers leave by; 0: by routing
	admits  func(index uint32) bool // whose queries are taken; nil: everybody's
}

// queue is room for queries that arrive while others are answered.
const queue = 4 << 20

func (w *place) peer(client, server netip.AddrPort) (dnsproxy.Peer, bool) {
	clean := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	p := dnsproxy.Peer{Client: clean(client), Server: clean(server), Origin: w.origin, Netns: w.netns}
	var ok bool
	if w.host != nil {
		p.Index, ok = datapath.CgroupIndex(p.Server.Addr())
	} else {
		p.Index, ok = datapath.InterfaceIndex(p.Client.Addr())
	}
	return p, ok && (w.admits == nil || w.admits(p.Index))
}

// open adds the sockets for one port to f: for all of IPv4, and for all of IPv6
// if there is any. They belong to the network namespace of the calling thread.
func (w *place) open(f *Front, port uint16) (v6 bool, err error) {
	families := []string{"4"}
	if v6, err = haveIPv6(); err != nil {
		return false, err
	}
	if v6 {
		families = append(families, "6")
	}
	for _, family := range families {
		if err := w.openFamily(f, family, port); err != nil {
			return false, fmt.Errorf("listen for DNS queries: %w", err)
		}
	}
	return v6, nil
}

// haveIPv6 tells whether the namespace has IPv6, and lo an address of it.
func haveIPv6() (bool, error) {
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.TrimSpace(string(text)) == "0", err
}

func (w *place) openFamily(f *Front, family string, port uint16) error {
	any := map[string]string{"4": "0.0.0.0", "6": "::"}[family]
	address := net.JoinHostPort(any, strconv.Itoa(int(port)))
	listen := net.ListenConfig{Control: w.control}
	// An MPTCP socket cannot be transparent, and nobody asks in MPTCP.
	listen.SetMultipathTCP(false)
	packet, err := listen.ListenPacket(context.Background(), "udp"+family, address)
	if err != nil {
		return err
	}
	conn, err := datagram.NewConn(packet.(*net.UDPConn))
	if err != nil {
		return err
	}
	f.add(conn)
	f.Packets = append(f.Packets, &packets{conn: conn, port: port, v6: family == "6", where: w})
	// Go sets SO_REUSEADDR on TCP sockets that listen. It takes the port from
	// connections that linger, not from a socket that listens (socket(7)).
	stream, err := listen.Listen(context.Background(), "tcp"+family, address)
	if err != nil {
		return err
	}
	f.add(stream)
	f.Streams = append(f.Streams, &streams{listener: stream.(*net.TCPListener), where: w})
	return nil
}

// control sets what has to be set before bind. UDP sockets get no SO_REUSEADDR
// and no SO_REUSEPORT: nobody else is to get a share of the queries.
func (w *place) control(network, _ string, conn syscall.RawConn) error {
	var err error
	if ctlErr := conn.Control(func(fd uintptr) { err = w.options(int(fd), network) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

func (w *place) options(fd int, network string) error {
	level, transparent, info := unix.IPPROTO_IP, unix.IP_TRANSPARENT, unix.IP_PKTINFO
	if strings.HasSuffix(network, "6") {
		level, transparent, info = unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_RECVPKTINFO
	}
	if w.host != nil {
		if err := w.host.On(fd); err != nil {
			return err
		}
		transparent = unix.IP_FREEBIND
		if level == unix.IPPROTO_IPV6 {
			transparent = unix.IPV6_FREEBIND // a route leads there, but no device has the address
		}
	} else if err := fitAnyWay(fd, network); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, level, transparent, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_TRANSPARENT", err)
	}
	if !strings.HasPrefix(network, "udp") {
		return nil
	}
	if err := unix.SetsockoptInt(fd, level, info, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_PKTINFO", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queue); err != nil {
		return os.NewSyscallError("setsockopt SO_RCVBUFFORCE", err)
	}
	return nil
}

// segment is what a packet of IPv6 that every way takes has room for, behind its header and TCP's.
const segment = 1280 - 40 - 20

// fitAnyWay has answers get to a client behind a router of the workload's and a way that is narrower than the workload's
// device. What that router says of it is sent to whom the client has asked, and never gets here.
func fitAnyWay(fd int, network string) error {
	if strings.HasPrefix(network, "tcp") {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, segment); err != nil {
			return os.NewSyscallError("setsockopt TCP_MAXSEG", err)
		}
	}
	if strings.HasSuffix(network, "6") {
		return nil // whose routers make no fragments
	}
	err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
	return os.NewSyscallError("setsockopt IP_MTU_DISCOVER", err)
}
