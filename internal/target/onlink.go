// SPDX-License-Identifier: Apache-2.0

package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// OnLink follows which IPv6 prefixes are on the link of each interface: those of
// its own addresses and, for the port of a bridge, of the bridge's. It costs one
// file descriptor for any number of interfaces.
type OnLink struct {
	cookie uint64 // of the namespace that NewOnLink ran in
	socket *News  // answers and news, in the order in which they came about
	buf    []byte
	// next is, while questions are being answered, what the answers have told so
	// far; again says that they are not the whole truth.
	next  *addressing
	again bool

	// mu guards what follows, which only Run writes.
	mu  sync.Mutex
	now *addressing
}

// addressing is what a namespace's interfaces have.
type addressing struct {
	bridges map[int]int // by port
	// prefixes by the interface's own address; that of a point-to-point link lies elsewhere
	prefixes map[int]map[netip.Addr]netip.Prefix
}

func newAddressing() *addressing {
	return &addressing{bridges: make(map[int]int), prefixes: make(map[int]map[netip.Addr]netip.Prefix)}
}

// NewOnLink looks at the network namespace of the calling thread, whatever thread
// Run will be on.
func NewOnLink() (*OnLink, error) {
	o := &OnLink{buf: make([]byte, 64<<10), now: newAddressing()}
	var err error
	if o.cookie, err = NetnsCookie(); err != nil {
		return nil, fmt.Errorf("prefixes on links: %w", err)
	}
	if o.socket, err = OpenNews(unix.RTMGRP_LINK | unix.RTMGRP_IPV6_IFADDR); err != nil {
		return nil, fmt.Errorf("prefixes on links: %w", err)
	}
	err = o.look()
	for err == nil && o.next != nil {
		_, err = o.read()
	}
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// Close ends a Run in progress.
func (o *OnLink) Close() error {
	if err := o.socket.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// NetnsCookie is that of the namespace that is looked at.
func (o *OnLink) NetnsCookie() uint64 { return o.cookie }

// Run reads news until Close, and calls changed with each interface whose prefixes
// may be other ones than before.
func (o *OnLink) Run(changed func(ifindex int)) error {
	for {
		indexes, err := o.read()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, index := range indexes {
			changed(index)
			for port, bridge := range o.now.bridges { // without mu: nobody else writes
				if bridge == index {
					changed(port)
				}
			}
		}
	}
}

// Prefixes returns what is on the interface's link, sorted: global prefixes only.
func (o *OnLink) Prefixes(ifindex int) []netip.Prefix {
	o.mu.Lock()
	defer o.mu.Unlock()
	var prefixes []netip.Prefix
	for _, index := range []int{ifindex, o.now.bridges[ifindex]} {
		for own, prefix := range o.now.prefixes[index] {
			prefixes = append(prefixes, prefix)
			if !prefix.Contains(own) {
				prefixes = append(prefixes, netip.PrefixFrom(own, own.BitLen()))
			}
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return slices.Compact(prefixes)
}

// look asks for everything. What happens meanwhile is told among the answers.
func (o *OnLink) look() error {
	o.next, o.again = newAddressing(), false
	return o.ask(unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC))
}

func (o *OnLink) ask(question int, about nl.NetlinkRequestData) error {
	r := nl.NewNetlinkRequest(question, unix.NLM_F_DUMP)
	r.Seq = uint32(question) // comes back with the answers
	r.AddData(about)
	if _, err := o.socket.Write(r.Serialize()); err != nil {
		return fmt.Errorf("prefixes on links: ask: %w", err)
	}
	return nil
}

// read takes what the kernel has to tell and returns the interfaces that it is about.
func (o *OnLink) read() (changed []int, err error) {
	n, err := o.socket.Read(o.buf)
	if errors.Is(err, unix.ENOBUFS) { // news were lost
		if o.next == nil {
			return nil, o.look()
		}
		o.again = true
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("prefixes on links: %w", err)
	}
	messages, err := syscall.ParseNetlinkMessage(o.buf[:n])
	for _, m := range messages {
		var indexes []int
		if indexes, err = o.take(m); err != nil {
			break
		}
		changed = append(changed, indexes...)
	}
	if err != nil {
		return nil, fmt.Errorf("prefixes on links: %w", err)
	}
	return changed, nil
}

// take believes one message. Only the kernel can send them.
func (o *OnLink) take(m syscall.NetlinkMessage) (changed []int, err error) {
	answer := m.Header.Flags&unix.NLM_F_MULTI != 0
	if answer && m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
		o.again = true
	}
	switch m.Header.Type {
	case unix.NLMSG_ERROR:
		if len(m.Data) < 4 {
			return nil, errors.New("an error without a number")
		}
		return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
	case unix.NLMSG_DONE:
		return o.answered(m.Header.Seq)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.next != nil {
		if _, err := o.next.take(m); err != nil {
			return nil, err
		}
	}
	if answer {
		return nil, nil
	}
	index, err := o.now.take(m)
	if index != 0 {
		changed = append(changed, index)
	}
	return changed, err
}

// answered goes on to the next question, or begins to believe the answers.
func (o *OnLink) answered(question uint32) (changed []int, err error) {
	if question == unix.RTM_GETLINK {
		return nil, o.ask(unix.RTM_GETADDR, nl.NewIfAddrmsg(unix.AF_INET6))
	}
	if o.again {
		return nil, o.look()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.now
	o.now, o.next = o.next, nil
	for _, a := range []*addressing{before, o.now} {
		changed = slices.AppendSeq(changed, maps.Keys(a.bridges))
		changed = slices.AppendSeq(changed, maps.Keys(a.prefixes))
	}
	return changed, nil
}

// take returns the interface that the message changes, 0 if it changes none.
func (a *addressing) take(m syscall.NetlinkMessage) (ifindex int, err error) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return a.takeLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return a.takeAddr(m)
	}
	return 0, nil
}

func (a *addressing) takeLink(m syscall.NetlinkMessage) (ifindex int, err error) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return 0, fmt.Errorf("link of %d bytes, want at least %d", len(m.Data), unix.SizeofIfInfomsg)
	}
	info := nl.DeserializeIfInfomsg(m.Data)
	if info.Family != unix.AF_UNSPEC { // a bridge's word on its ports, which their own links tell too
		return 0, nil
	}
	index, bridge := int(info.Index), 0
	if m.Header.Type == unix.RTM_DELLINK {
		delete(a.prefixes, index)
	} else if bridge, err = bridgeOf(m.Data[unix.SizeofIfInfomsg:]); err != nil {
		return 0, err
	}
	if a.bridges[index] == bridge {
		return 0, nil
	}
	if a.bridges[index] = bridge; bridge == 0 {
		delete(a.bridges, index)
	}
	return index, nil
}

// bridgeOf finds the bridge that a link is a port of, 0 if there is none.
func bridgeOf(attributes []byte) (int, error) {
	link, err := nl.ParseRouteAttrAsMap(attributes)
	if err != nil {
		return 0, err
	}
	master, info := link[unix.IFLA_MASTER].Value, link[unix.IFLA_LINKINFO].Value
	if len(master) != 4 || info == nil {
		return 0, nil
	}
	kind, err := nl.ParseRouteAttrAsMap(info)
	if err != nil {
		return 0, err
	}
	if unix.ByteSliceToString(kind[unix.IFLA_INFO_SLAVE_KIND].Value) != "bridge" {
		return 0, nil
	}
	return int(binary.NativeEndian.Uint32(master)), nil
}

func (a *addressing) takeAddr(m syscall.NetlinkMessage) (ifindex int, err error) {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return 0, fmt.Errorf("address of %d bytes, want at least %d", len(m.Data), unix.SizeofIfAddrmsg)
	}
	info := nl.DeserializeIfAddrmsg(m.Data)
	attributes, err := nl.ParseRouteAttrAsMap(m.Data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, err
	}
	// IFA_LOCAL is there if the other end of a link has an address too.
	far, _ := netip.AddrFromSlice(attributes[unix.IFA_ADDRESS].Value)
	own, ok := netip.AddrFromSlice(attributes[unix.IFA_LOCAL].Value)
	if !ok {
		own = far
	}
	if info.Family != unix.AF_INET6 || !own.IsGlobalUnicast() || !far.IsGlobalUnicast() {
		return 0, nil
	}
	prefix, err := far.Prefix(int(info.Prefixlen))
	if err != nil {
		return 0, err
	}
	flags := attributes[unix.IFA_FLAGS].Value
	if len(flags) == 4 && binary.NativeEndian.Uint32(flags)&unix.IFA_F_NOPREFIXROUTE != 0 {
		prefix = netip.PrefixFrom(far, far.BitLen()) // its neighbours are not said to be on the link
	}
	index := int(info.Index)
	if m.Header.Type == unix.RTM_DELADDR {
		delete(a.prefixes[index], own)
		return index, nil
	}
	if a.prefixes[index] == nil {
		a.prefixes[index] = make(map[netip.Addr]netip.Prefix)
	}
	if a.prefixes[index][own] == prefix { // a lifetime was renewed
		return 0, nil
	}
	a.prefixes[index][own] = prefix
	return index, nil
}
