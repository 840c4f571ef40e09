// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/testenv"
)

// oddSenders send one packet to port 53 that no resolver would.
var oddSenders = map[string]func(to netip.Addr) error{
	"raw UDP":       func(to netip.Addr) error { return sendRaw(to, unix.IPPROTO_UDP, query(), nil) },
	"raw TCP":       func(to netip.Addr) error { return sendRaw(to, unix.IPPROTO_TCP, syn(), nil) },
	"options":       func(to netip.Addr) error { return sendRaw(to, unix.IPPROTO_RAW, ipv4(to, []byte{1, 1, 1, 0}, 0), nil) },
	"fragment":      func(to netip.Addr) error { return sendRaw(to, unix.IPPROTO_RAW, ipv4(to, nil, 0x2000), nil) },
	"source route":  sourceRouted,
	"IPv6, raw UDP": func(to netip.Addr) error { return sendRaw(to, unix.IPPROTO_UDP, query(), nil) },
	"IPv6, raw TCP": func(to netip.Addr) error { return sendRaw(to, unix.IPPROTO_TCP, syn(), nil) },
	"IPv6, an extension header": func(to netip.Addr) error {
		return sendRaw(to, unix.IPPROTO_UDP, query(), func(fd int) error {
			return unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00")
		})
	},
	"IPv6, a fragment": func(to netip.Addr) error {
		return sendRaw(to, unix.IPPROTO_FRAGMENT, append([]byte{unix.IPPROTO_UDP, 0, 0, 1, 0, 0, 0, 9}, query()...), nil)
	},
}

// sourceRouted sends from an ordinary socket, by way of an address that its options name (RFC 791).
func sourceRouted(to netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x83\x07\x04"+string(to.AsSlice())+"\x00"); err != nil {
		return err
	}
	err = unix.Sendto(fd, []byte("question"), 0, &unix.SockaddrInet4{Addr: [4]byte{9, 9, 9, 9}, Port: 53})
	if errors.Is(err, unix.EPERM) {
		return nil // dropped, and told so
	}
	return err
}

// query is a UDP datagram, syn a TCP segment, to port 53.
func query() []byte {
	b := binary.BigEndian.AppendUint16(nil, 4000)
	b = binary.BigEndian.AppendUint16(b, 53)
	return append(b, "\x00\x10\x00\x00question"...)
}

func syn() []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 4000)
	binary.BigEndian.PutUint16(b[2:], 53)
	b[12], b[13] = 5<<4, 2
	return b
}

// ipv4 is a packet whose other fields the kernel fills in (raw(7)).
func ipv4(to netip.Addr, options []byte, fragment uint16) []byte {
	b := make([]byte, 20, 64)
	b[0], b[8], b[9] = byte(4<<4|(20+len(options))/4), 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[16:], to.AsSlice())
	return append(append(b, options...), query()...)
}

func sendRaw(to netip.Addr, protocol int, packet []byte, prepare func(fd int) error) error {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
	if to.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if prepare != nil {
		if err := prepare(fd); err != nil {
			return err
		}
	}
	err = unix.Sendto(fd, packet, 0, sa)
	if errors.Is(err, unix.EPERM) {
		return nil // dropped, and told so
	}
	return err
}

var oddSender = testenv.NewFunc("odd-sender", func(args []string) error {
	to, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	return oddSenders[args[0]](to)
})

// What is sent to port 53 past the sockets that are turned to the listener is dropped, allowed or not, in whatever it is
// wrapped; without the filter all of it leaves.
func TestOddQueriesOfACgroup(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	d := open(t)
	id, _ := attach(t, d, cgroupTarget(t, cg), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	front(t, intercept.OpenCgroups, d)
	n := 0
	for kind := range oddSenders {
		n++
		to := netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", n))
		if strings.HasPrefix(kind, "IPv6") {
			to = netip.MustParseAddr(fmt.Sprintf("2001:db8:100::%d", n))
		}
		send := func(cg *testenv.Cgroup) {
			t.Helper()
			cmd := oddSender.Command(kind, to.String())
			testenv.Start(t, cmd, nil, cg)
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
		}
		send(nil)
		outside.Await(t, 1, testenv.To(to))
		before, err := d.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		send(cg)
		after, err := d.Counters(id)
		if err != nil {
			t.Fatal(err)
		}
		reason := "dns"
		if kind == "source route" {
			reason = "source-route"
		}
		if after.Drops[reason]-before.Drops[reason] != 1 {
			t.Errorf("%s: dropped %v, before %v", kind, after.Drops, before.Drops)
		}
		last := netip.MustParseAddrPort("203.0.113.77:9") // sent later, arrived later
		seen := outside.Sum(t, testenv.To(last.Addr())).Count
		testenv.StartWorkload(t, nil, cg).Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: last})
		outside.Await(t, seen+1, testenv.To(last.Addr()))
		if n := outside.Sum(t, testenv.To(to)).Count; n != 1 {
			t.Errorf("%s: %d packets arrived outside, want the one that was not filtered", kind, n)
		}
	}
}
