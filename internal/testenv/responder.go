// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Respond has a process answer every A query to an IPv4 address of the namespace, over UDP, as fast as one can: a server
// that is not to be what a benchmark measures. nK.fresh.example has the K-th address of the prefix, for no time at all, so
// that nobody may keep it; any other nK has it for five minutes.
func Respond(t TB, ns *NS, at netip.AddrPort, prefix netip.Prefix) {
	t.Helper()
	cmd := responder.Command(at.String(), prefix.String())
	ready, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("responder: %v", err)
	}
	Start(t, cmd, ns, nil)
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatalf("responder: %v", err)
	}
}

const responderBatch = 64

var responder = NewFunc("responder", func(args []string) error {
	at, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	prefix, err := netip.ParsePrefix(args[1])
	if err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	if ctlErr != nil || err != nil {
		return fmt.Errorf("SO_RCVBUF: %v, %v", ctlErr, err)
	}
	fmt.Fprint(os.Stdout, ".")
	conn := ipv4.NewPacketConn(socket)
	queries, answers := make([]ipv4.Message, responderBatch), make([]ipv4.Message, 0, responderBatch)
	for i := range queries {
		queries[i].Buffers = [][]byte{make([]byte, 1500)}
	}
	for {
		n, err := conn.ReadBatch(queries, 0)
		if err != nil {
			return err
		}
		answers = answers[:0]
		for _, q := range queries[:n] {
			if a := respond(q.Buffers[0][:q.N], prefix); a != nil {
				answers = append(answers, ipv4.Message{Buffers: [][]byte{a}, Addr: q.Addr})
			}
		}
		for sent := 0; sent < len(answers); {
			n, err := conn.WriteBatch(answers[sent:], 0)
			if err != nil {
				n = 1 // that one is lost
			}
			sent += n
		}
	}
})

// respond makes an answer of a query (RFC 1035 section 4.1): an address after the question, then whatever followed that.
func respond(query []byte, prefix netip.Prefix) []byte {
	const header, fixed = 12, 4
	end, number, fresh := header, uint32(0), false
	for end < len(query) && query[end] != 0 {
		label := query[end+1 : min(len(query), end+1+int(query[end]))]
		switch {
		case end == header:
			for _, digit := range label[min(1, len(label)):] {
				number = 10*number + uint32(digit-'0')
			}
		case len(label) == 5 && label[0]|0x20 == 'f':
			fresh = true
		}
		end += 1 + len(label)
	}
	end += 1 + fixed
	if end > len(query) {
		return nil
	}
	answer := append(make([]byte, 0, len(query)+16), query[:end]...)
	answer[2], answer[3] = 0x80|query[2]&0x79, 0x80
	if binary.BigEndian.Uint16(query[end-fixed:]) == 1 {
		answer[7] = 1
		ttl := uint32(300)
		if fresh {
			ttl = 0
		}
		base := prefix.Masked().Addr().As4()
		answer = append(answer, 0xc0, header, 0, 1, 0, 1)
		answer = binary.BigEndian.AppendUint32(answer, ttl)
		answer = append(answer, 0, 4)
		answer = binary.BigEndian.AppendUint32(answer, binary.BigEndian.Uint32(base[:])+number)
	}
	return append(answer, query[end:]...)
}
