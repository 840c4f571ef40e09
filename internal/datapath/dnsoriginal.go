// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// CgroupQuery is where a query of a cgroup has come from, and to.
type CgroupQuery struct {
	Member Member         // whose it is
	Client netip.AddrPort // of the socket that asks
	Asked  netip.AddrPort // the DNS address that it was turned to, and the listener's port
	TCP    bool
	Netns  int // that Client is in: its id in this process's (rtnetlink(7), RTM_GETNSID), or OwnNetns
}

// OwnNetns is the network namespace of this process.
const OwnNetns = -1

// Original is the server that the query was for. The zero AddrPort: nobody knows, because the socket is closed, asked a
// DNS address as such or was not turned there for q.Member.
//
// The kernel is asked for the socket that the answer would go to, so queries that nobody asks this of cost nothing. It
// answers in some microseconds.
func (d *Datapath) Original(q CgroupQuery) (netip.AddrPort, error) {
	question := bpfDnsQuestion{
		Identity:   uint64(q.Member.incarnation)<<32 | uint64(q.Member.Index),
		Netns:      int32(q.Netns),
		ClientPort: q.Client.Port(), Listener: q.Asked.Port(),
		Protocol: unix.IPPROTO_UDP,
	}
	question.Client.Word, question.Asked.Word = networkWords(q.Client.Addr()), networkWords(q.Asked.Addr())
	if q.TCP {
		question.Protocol = unix.IPPROTO_TCP
	}
	packet, err := binary.Append(nil, binary.NativeEndian, &question)
	if err != nil {
		return netip.AddrPort{}, err
	}
	options := ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet))}
	known, err := d.bpf.NfDnsOriginal.Run(&options)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find whom a query was for: %w", err)
	}
	if known == 0 {
		return netip.AddrPort{}, nil
	}
	if _, err := binary.Decode(options.DataOut, binary.NativeEndian, &question); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addressOf(question.Server.Word), question.ServerPort), nil
}
