// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datagram"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/dnsproxy"
)

// ports are tried in turn, one for each process that listens: privileged, so
// that no user takes one; below those that bindresvport(3) and the kernel's NFS
// client choose from; and nobody's at IANA. There are 45, for a host that runs
// that many commands without a daemon at once.
var ports = slices.Concat([]uint16{253, 254, 252, 251, 250, 249, 255}, span(288, 307), span(325, 332), span(334, 343))

func span(first, last uint16) []uint16 {
	all := make([]uint16, 0, last-first+1)
	for port := first; port <= last; port++ {
		all = append(all, port)
	}
	return all
}

// OpenCgroups opens the sockets for the queries of cgroups, and for those that
// the host sends to an attachment's DNS address. On a machine without IPv6 they
// are for IPv4.
func OpenCgroups(k Kernel) (*Front, error) {
	filter, err := datapath.NewDNSFilter()
	if err != nil {
		return nil, err
	}
	where := &place{host: filter, origin: dnsproxy.Cgroup}
	for _, port := range ports {
		f := &Front{port: port, filter: filter}
		v6, err := where.open(f, port)
		if err == nil {
			err = f.toCgroups(k, port, v6, filter.Realm)
		}
		if err == nil {
			f.add(filter)
			return f, nil
		}
		if closeErr := f.Close(); !errors.Is(err, unix.EADDRINUSE) || closeErr != nil {
			return nil, errors.Join(err, closeErr, filter.Close())
		}
	}
	_ = filter.Close()
	return nil, fmt.Errorf("listen for DNS queries: %d ports, %d and others, are all in use (start a daemon: commands share its port)",
		len(ports), ports[0])
}

// toCgroups has queries come to the sockets of f.
func (f *Front) toCgroups(k Kernel, port uint16, v6 bool, realm uint32) error {
	netns, err := netnsCookie(f.Packets[0].(*packets).conn)
	if err != nil {
		return err
	}
	if v6 {
		route, err := dnsRoute(port)
		if err != nil {
			return err
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s to lo: %w", datapath.DNSRange6(), err)
		}
		f.add(closerFunc(func() error { return removeRoute(route) }))
	}
	if err := k.ListenCgroups(datapath.DNSListener{Netns: netns, Port: port, IPv6: v6, Realm: realm}); err != nil {
		return err
	}
	f.add(closerFunc(func() error { return k.ListenCgroups(datapath.DNSListener{}) }))
	return nil
}

func netnsCookie(conn *datagram.Conn) (cookie uint64, err error) {
	ctlErr := conn.Control(func(fd uintptr) {
		cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	})
	return cookie, errors.Join(ctlErr, os.NewSyscallError("getsockopt SO_NETNS_COOKIE", err))
}

// dnsRoute makes every IPv6 DNS address the host's own. The port, being the
// metric, tells the routes of two processes apart: each removes its own.
func dnsRoute(port uint16) (*netlink.Route, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("lo: %w", err)
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(datapath.DNSRange6()), Priority: int(port),
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}, nil
}

func removeRoute(route *netlink.Route) error {
	if err := netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %s: %w", route.Dst, err)
	}
	return nil
}

// Remove takes away what killed processes have left: routes to IPv6 DNS
// addresses. What lives in a network namespace has gone with its process.
func Remove() error {
	if v6, err := haveIPv6(); !v6 || err != nil {
		return err
	}
	var errs []error
	for _, port := range ports {
		errs = append(errs, removeUnused(port))
	}
	return errors.Join(errs...)
}

// removeUnused removes the route of a port that nobody listens at. It holds the
// port meanwhile: who took it now would lose a route of its own.
func removeUnused(port uint16) error {
	conn, err := net.ListenPacket("udp4", "0.0.0.0:"+strconv.Itoa(int(port)))
	// EPERM: an attachment around this process keeps the port for its listener.
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EPERM) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove route of port %d: %w", port, err)
	}
	defer conn.Close()
	route, err := dnsRoute(port)
	if err != nil {
		return err
	}
	return removeRoute(route)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
