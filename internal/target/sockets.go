// SPDX-License-Identifier: Apache-2.0

package target

import (
	"bufio"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A socket is judged by the cgroup in which it was opened, wherever it is used
// (include/linux/cgroup-defs.h, struct sock_cgroup_data).

// maxNamespaces bounds the network namespaces whose sockets are listed.
const maxNamespaces = 16

// connected counts the holders of a socket from outside.
func (s *scene) connected() int {
	outside := make(map[string]map[uint32]bool) // inodes by namespace
	for _, h := range s.holders {
		if _, known := outside[h.netns]; !known && len(outside) < maxNamespaces {
			outside[h.netns] = s.outside(h.pid, h.netns)
		}
	}
	n := 0
	for _, h := range s.holders {
		for _, inode := range h.sockets {
			if outside[h.netns][inode] {
				n++
				break
			}
		}
	}
	return n
}

// outside lists the sockets of a process's network namespace that the cgroup's
// filter does not see. Packet sockets are never seen. Of raw ones the kernel tells
// no cgroup where it lacks raw_diag: they count.
func (s *scene) outside(pid, namespace string) map[uint32]bool {
	inodes := make(map[uint32]bool)
	dir := filepath.Join(s.proc, pid, "net")
	inodesOf(filepath.Join(dir, "packet"), 8, inodes)
	for _, table := range []string{"raw", "raw6", "icmp", "icmp6"} {
		inodesOf(filepath.Join(dir, table), 9, inodes)
	}
	ns := netns.None() // the caller's own
	if namespace != s.home {
		var err error
		if ns, err = netns.GetFromPath(filepath.Join(s.proc, pid, "ns/net")); err != nil {
			return inodes
		}
		defer ns.Close()
	}
	socket, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return inodes // not permitted, or gone
	}
	defer socket.Close()
	for _, protocol := range diagProtocols {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_SOCK_DIAG: {Socket: socket}}
			req.AddRawData(diagRequest(family, protocol))
			// An error is a protocol that this kernel does not list; what was listed before it counts.
			_ = req.ExecuteIter(unix.NETLINK_SOCK_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(message []byte) bool {
				if inode, cgroup, ok := diagSocket(message); ok {
					inodes[inode] = !s.inside[cgroup]
				}
				return true
			})
		}
	}
	return inodes
}

// diagProtocols are those that a kernel lists without loading the protocol itself for it.
var diagProtocols = []uint32{unix.IPPROTO_TCP, unix.IPPROTO_MPTCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_RAW}

// diagRequest asks for all sockets of a protocol: struct inet_diag_req_v2
// (include/uapi/linux/inet_diag.h).
func diagRequest(family uint8, protocol uint32) []byte {
	b := make([]byte, 56, 64)
	b[0], b[1] = family, uint8(min(protocol, unix.IPPROTO_RAW))
	binary.NativeEndian.PutUint32(b[4:], 0xffffffff) // every state
	if protocol <= unix.IPPROTO_RAW {
		return b
	}
	b = binary.NativeEndian.AppendUint16(b, 8) // an attribute says what a byte does not hold
	b = binary.NativeEndian.AppendUint16(b, diagReqProtocol)
	return binary.NativeEndian.AppendUint32(b, protocol)
}

const (
	diagReqProtocol = 3 // INET_DIAG_REQ_PROTOCOL

	diagInode    = 68 // offset in struct inet_diag_msg
	diagLength   = 72 // of it; attributes follow
	diagCgroupID = 21 // INET_DIAG_CGROUP_ID
)

// diagSocket reads an answer. A socket that no file refers to has inode 0.
func diagSocket(message []byte) (inode uint32, cgroup uint64, ok bool) {
	if len(message) < diagLength {
		return 0, 0, false
	}
	inode = binary.NativeEndian.Uint32(message[diagInode:])
	attributes, err := nl.ParseRouteAttr(message[diagLength:])
	if err != nil || inode == 0 {
		return 0, 0, false
	}
	for _, a := range attributes {
		if a.Attr.Type == diagCgroupID && len(a.Value) == 8 {
			return inode, binary.NativeEndian.Uint64(a.Value), true
		}
	}
	return 0, 0, false
}

// inodesOf adds what a table of /proc/net has in a column.
func inodesOf(path string, column int, inodes map[uint32]bool) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) <= column {
			continue
		}
		if inode, err := strconv.ParseUint(fields[column], 10, 32); err == nil {
			inodes[uint32(inode)] = true
		}
	}
}
