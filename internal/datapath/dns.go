// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// DNSListener is where the queries of cgroups are to go: sockets on lo, on every
// address, at one port.
type DNSListener struct {
	Netns uint64 // cookie of the namespace that the sockets are in
	Port  uint16 // 0: nobody listens, and queries are refused
	IPv6  bool   // they are there for IPv6 too
	Realm uint32 // of the DNSFilter that they have
}

// ListenCgroups has the queries of cgroups go to l from now on. Nobody listens
// after Open, and after Close.
func (d *Datapath) ListenCgroups(l DNSListener) error {
	// Without a port nothing else counts, so it comes last.
	for _, s := range []struct {
		key   bpfDnsSetting
		value uint64
	}{
		{bpfDnsSettingDNS_PORT, 0},
		{bpfDnsSettingDNS_NETNS, l.Netns},
		{bpfDnsSettingDNS_REALM, uint64(l.Realm)},
		{bpfDnsSettingDNS_PORT, uint64(l.Port)},
	} {
		if err := d.setDNS(s.key, s.value); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listener = l
	return nil
}

// ListenIn has the queries of cgroups' sockets in another network namespace go to sockets there, at the port and with
// the realm of those that ListenCgroups was told of. The Closer has them refused again, as they are after Open.
func (d *Datapath) ListenIn(netns uint64) (io.Closer, error) {
	if err := d.bpf.NfDnsPlaces.Put(netns, uint32(1)); err != nil {
		return nil, fmt.Errorf("where DNS queries go: %w", err)
	}
	return closerFunc(func() error {
		if err := d.bpf.NfDnsPlaces.Delete(netns); err != nil {
			return fmt.Errorf("where DNS queries go: %w", err)
		}
		return nil
	}), nil
}

// ListenInterfaces has the queries of interfaces go through the veth with the
// given index to whoever listens behind it, and attaches the way back to it. That
// program stays until the device is gone: what comes out after a crash is no
// packet of the host's. The Closer ends the handing over; nobody listens after Open.
func (d *Datapath) ListenInterfaces(ifindex int) (io.Closer, error) {
	if d.only == Cgroups {
		return nil, errors.New("listen for interfaces: this datapath was opened for cgroups only")
	}
	if err := d.leadBack(ifindex); err != nil {
		return nil, fmt.Errorf("attach the way back of DNS answers: %w", vanished(err))
	}
	if err := d.setDNS(bpfDnsSettingDNS_IFINDEX, uint64(ifindex)); err != nil {
		return nil, err
	}
	return closerFunc(func() error {
		d.returns.Store(0)
		return d.setDNS(bpfDnsSettingDNS_IFINDEX, 0)
	}), nil
}

func (d *Datapath) leadBack(ifindex int) error {
	if d.filters {
		if err := dnsReturn(ifindex).put(d.ours, d.bpf.NfDnsReturn); err != nil {
			return err
		}
		d.returns.Store(int64(ifindex))
		return nil
	}
	return link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: ifindex, Program: d.bpf.NfDnsReturn, Attach: ebpf.AttachTCXIngress,
	})
}

// dnsReturn is where the way back is on the device that queries go through.
func dnsReturn(ifindex int) place {
	return place{side: "ingress", ifindex: ifindex, handle: filterHandle(1), id: "dns"}
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// unlisten refuses queries.
func (d *Datapath) unlisten() error {
	return errors.Join(d.ListenCgroups(DNSListener{}), d.setDNS(bpfDnsSettingDNS_IFINDEX, 0))
}

func (d *Datapath) setDNS(key bpfDnsSetting, value uint64) error {
	if err := d.bpf.NfDns.Put(uint32(key), value); err != nil {
		return fmt.Errorf("where DNS queries go: %w", err)
	}
	return nil
}

// endDNSFlows gives back the room of queries that are answered or given up.
func (d *Datapath) endDNSFlows() error {
	if _, err := d.bpf.NfDnsFlowsEnd.Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("end DNS flows: %w", err)
	}
	return nil
}

// Index is the attachment's index in the kernel, by which its queries are known.
func (d *Datapath) Index(id string) (uint32, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.known[id]
	if a == nil {
		return 0, false
	}
	return a.index, true
}

// DNSAddress is where the host, and the attachment if it is a cgroup, may ask
// on the attachment's behalf: "127.128.0.7:253". Empty while nobody listens.
func (d *Datapath) DNSAddress(id string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.known[id]
	if a == nil || d.listener.Port == 0 {
		return ""
	}
	return netip.AddrPortFrom(dnsAddress4(a.index), d.listener.Port).String()
}

// Addresses for a workload behind an interface to be configured with, for port
// 53. Every address is answered, but these are nobody's (RFC 5737, and a unique
// local one), so that they lead along the default route, which a workload has if
// it has only one.
var (
	nameserver4 = netip.MustParseAddr("192.0.2.53")
	nameserver6 = netip.MustParseAddr("fd4e:4644:4e55::53")
)

// Nameservers are addresses for the workload's resolver configuration, port 53.
func (d *Datapath) Nameservers(id string) []netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.known[id]
	switch {
	case a == nil:
		return nil
	case isInterface(a.record):
		return []netip.Addr{nameserver4, nameserver6}
	case d.listener.IPv6:
		return []netip.Addr{dnsAddress4(a.index), dnsAddress6(a.index)}
	}
	return []netip.Addr{dnsAddress4(a.index)}
}

// The DNS address of an attachment is slot:4|index:19 below these; see bpf/dns.h.
var (
	dnsRange4 = netip.MustParsePrefix("127.128.0.0/9")
	dnsRange6 = netip.MustParsePrefix("fd4e:4644:4e53::/64")
	// What the queries of interfaces come from, below these: the index.
	dnsClient4 = netip.MustParsePrefix("240.0.0.0/8")
	dnsClient6 = netip.MustParsePrefix("fd4e:4644:4e54::/64")
)

const dnsIndexMask = 1<<uint32(bpfLimitDNS_INDEX_BITS) - 1

func dnsAddress4(index uint32) netip.Addr { return below(dnsRange4, index) }
func dnsAddress6(index uint32) netip.Addr { return below(dnsRange6, index) }

// below puts low bits into an address of a prefix.
func below(p netip.Prefix, low uint32) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range 4 {
		b[len(b)-1-i] |= byte(low >> (8 * i))
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// CgroupIndex finds whose query it is that came to a DNS address.
func CgroupIndex(to netip.Addr) (uint32, bool) { return lowIndex(to, dnsRange4, dnsRange6) }

// InterfaceIndex finds whose query it is that came out of an interface.
func InterfaceIndex(from netip.Addr) (uint32, bool) { return lowIndex(from, dnsClient4, dnsClient6) }

func lowIndex(a netip.Addr, prefixes ...netip.Prefix) (uint32, bool) {
	a = a.Unmap().WithZone("")
	for _, p := range prefixes {
		if !p.Contains(a) {
			continue
		}
		b := a.AsSlice()
		var low uint32
		for _, octet := range b[len(b)-4:] {
			low = low<<8 | uint32(octet)
		}
		index := low & dnsIndexMask
		return index, index != 0 && index < maxAttachments
	}
	return 0, false
}

// DNSRanges are all addresses that lead to whoever listens, or that queries come
// from: nobody else has them.
func DNSRanges() []netip.Prefix {
	return []netip.Prefix{
		dnsRange4, dnsRange6, dnsClient4, dnsClient6,
		netip.PrefixFrom(nameserver4, nameserver4.BitLen()), netip.PrefixFrom(nameserver6, nameserver6.BitLen()),
	}
}

// DNSRange6 is where the IPv6 DNS addresses are; whoever listens has to have
// them led to lo. Those of IPv4 need nothing.
func DNSRange6() netip.Prefix { return dnsRange6 }
