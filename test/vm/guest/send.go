// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
	"os"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/vm/order"
)

const device = "eth0"

func configure(n order.Network) error {
	// Addresses that are looked for twice are not usable for a second.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	for _, name := range []string{"lo", device} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, a := range n.Addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return err
		}
	}
	for _, gateway := range n.Gateways {
		err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
		if err != nil {
			return err
		}
	}
	return nil
}

func send(a order.Ask) (order.Answer, error) {
	switch {
	case a.Probe != nil:
		out, err := testenv.Send(*a.Probe)
		return order.Answer{Outcome: out}, err
	case a.Query != nil:
		return ask(*a.Query), nil
	}
	return order.Answer{}, sendFrame(a.Frame)
}

func ask(q order.Query) order.Answer {
	client := dns.Client{Timeout: testenv.Patience}
	if q.TCP {
		client.Net = "tcp"
	}
	reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(q.Name, q.Type), q.Server.String())
	if err != nil {
		return order.Answer{Rcode: -1, Err: err.Error()}
	}
	answer := order.Answer{Rcode: reply.Rcode}
	for _, rr := range reply.Answer {
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A.To4()
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if addr, ok := netip.AddrFromSlice(ip); ok {
			answer.Addrs = append(answer.Addrs, addr)
		}
	}
	return answer
}

func sendFrame(frame []byte) error {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
}
