// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/testenv"
)

// question is what a workload sends to one server after another over one socket.
type question struct {
	Kind    string // udp, connected, tcp; with "-mapped": to IPv4 through an IPv6 socket
	Servers []netip.AddrPort
	Repeat  int            // with a new socket each; the first that is not answered tells
	Bind    netip.AddrPort // the socket, first; none: not bound
	Device  string         // to bind it to
	Brief   bool           // no answer is expected, so that a second is enough to wait for it
	Wait    bool           // for a line on stdin, after the first server; go on with the same connection
}

// outcome is what came of asking one server.
type outcome struct {
	Answer answer
	From   netip.AddrPort // recvfrom
	Peer   netip.AddrPort // getpeername of what is connected
	Most   int            // bytes of a TCP segment
	Call   string         // the first that failed, and why
	Errno  unix.Errno
}

// asker asks and prints what comes of it. A server that does not answer in time is
// EAGAIN.
var asker = testenv.NewFunc("asker", func(args []string) error {
	var questions []question
	if err := json.Unmarshal([]byte(args[0]), &questions); err != nil {
		return err
	}
	var all [][]outcome
	for _, q := range questions {
		outcomes := q.ask()
		for i := 1; i < q.Repeat && outcomes[0].Call == ""; i++ {
			outcomes = q.ask()
		}
		all = append(all, outcomes)
	}
	return json.NewEncoder(os.Stdout).Encode(all)
})

func (q question) ask() []outcome {
	kind, mapped := strings.CutSuffix(q.Kind, "-mapped")
	family, typ := unix.AF_INET, unix.SOCK_DGRAM
	if mapped || q.Servers[0].Addr().Is6() {
		family = unix.AF_INET6
	}
	if kind == "tcp" {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return []outcome{failed("socket", err)}
	}
	defer unix.Close(fd)
	patience := testenv.Patience
	if q.Brief {
		patience = time.Second
	}
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &unix.Timeval{Sec: int64(patience / time.Second)}); err != nil {
			return []outcome{failed("setsockopt", err)}
		}
	}
	if q.Device != "" {
		if err := unix.BindToDevice(fd, q.Device); err != nil {
			return []outcome{failed("bind to device", err)}
		}
	}
	if q.Bind.IsValid() {
		if err := unix.Bind(fd, sockaddr(q.Bind, family)); err != nil {
			return []outcome{failed("bind", err)}
		}
	}
	var all []outcome
	for i, server := range q.Servers {
		text := fmt.Sprintf("question %d", i)
		if q.Wait && i > 0 {
			to := sockaddr(server, family)
			if kind != "udp" {
				to = nil
			}
			all = append(all, exchange(fd, kind, to, text))
			continue
		}
		all = append(all, askOne(fd, kind, sockaddr(server, family), text, patience))
		if q.Wait && i == 0 {
			fmt.Println()
			if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
				return append(all, failed("wait", err))
			}
		}
	}
	return all
}

func askOne(fd int, kind string, server unix.Sockaddr, text string, patience time.Duration) outcome {
	if kind == "udp" {
		return exchange(fd, kind, server, text)
	}
	if err := connect(fd, server, patience); err != nil {
		return failed("connect", err)
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return failed("getpeername", err)
	}
	o := exchange(fd, kind, nil, text)
	o.Peer = addrPort(peer)
	if kind == "tcp" {
		if o.Most, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG); err != nil {
			return failed("getsockopt", err)
		}
	}
	return o
}

// connect is connect(2) of a socket with that timeout. A signal, which the runtime sends its threads, ends the call and
// not the attempt.
func connect(fd int, server unix.Sockaddr, patience time.Duration) error {
	err := unix.Connect(fd, server)
	if err != unix.EINTR {
		return err
	}
	deadline := time.Now().Add(patience)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return unix.EINPROGRESS // what connect(2) says then
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n <= 0 {
			continue
		}
		errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || errno == 0 {
			return err
		}
		return unix.Errno(errno)
	}
}

// exchange sends to a server, or where the socket is connected to.
func exchange(fd int, kind string, server unix.Sockaddr, text string) (o outcome) {
	message := []byte(text)
	if kind == "tcp" {
		message = append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
	}
	var err error
	if server == nil {
		err = unix.Send(fd, message, 0)
	} else {
		err = unix.Sendto(fd, message, 0, server)
	}
	if err != nil {
		return failed("send", err)
	}
	b := make([]byte, 4096)
	n, from, err := unix.Recvfrom(fd, b, 0)
	for err == unix.EINTR { // with a timeout, recv(2) is not taken up again after a signal
		n, from, err = unix.Recvfrom(fd, b, 0)
	}
	if err != nil {
		return failed("recv", err)
	}
	o.From = addrPort(from)
	b = b[:n]
	if kind == "tcp" {
		if n < 2 {
			return failed("recv", io.ErrUnexpectedEOF)
		}
		b = b[2:]
	}
	if err := json.Unmarshal(b, &o.Answer); err != nil {
		return failed("decode", err)
	}
	return o
}

func failed(call string, err error) outcome {
	o := outcome{Call: call + ": " + err.Error()}
	errors.As(err, &o.Errno)
	return o
}

func sockaddr(a netip.AddrPort, family int) unix.Sockaddr {
	if family == unix.AF_INET6 {
		zone := uint32(0)
		if a.Addr().IsLinkLocalUnicast() && a.Addr().Is6() {
			zone = 2 // the workload's only device
			if dev, err := net.InterfaceByName(a.Addr().Zone()); err == nil {
				zone = uint32(dev.Index)
			}
		}
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zone}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// ask runs an asker in a namespace and a cgroup, either of which may be nil.
func ask(t *testing.T, ns *testenv.NS, cg *testenv.Cgroup, questions ...question) [][]outcome {
	t.Helper()
	return askAround(t, ns, cg, nil, questions...)
}

// askAround calls between when the asker waits.
func askAround(t *testing.T, ns *testenv.NS, cg *testenv.Cgroup, between func(), questions ...question) [][]outcome {
	t.Helper()
	text, err := json.Marshal(questions)
	if err != nil {
		t.Fatal(err)
	}
	cmd := asker.Command(string(text))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	testenv.Start(t, cmd, ns, cg)
	out := bufio.NewReader(stdout)
	if between != nil {
		if _, err := out.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		between()
		if _, err := fmt.Fprintln(stdin); err != nil {
			t.Fatal(err)
		}
	}
	var all [][]outcome
	if err := json.NewDecoder(out).Decode(&all); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

// questions asks each server over a socket of its own for each kind.
func questions(kinds, servers []string) []question {
	var all []question
	for _, server := range servers {
		for _, kind := range kinds {
			all = append(all, question{Kind: kind, Servers: []netip.AddrPort{port53(server)}})
		}
	}
	return all
}

// briefly are the same, of which no answer is expected.
func briefly(asked []question) []question {
	all := slices.Clone(asked)
	for i := range all {
		all[i].Brief = true
	}
	return all
}

func port53(addr string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), 53)
}

// answered checks that each question was answered, and by whom it was asked.
func answered(t *testing.T, index uint32, asked []question, all [][]outcome) {
	t.Helper()
	for i, q := range asked {
		for j, o := range all[i] {
			server := netip.AddrPortFrom(q.Servers[j].Addr().WithZone(""), q.Servers[j].Port())
			switch {
			case o.Call != "":
				t.Errorf("%s %s: %s", q.Kind, server, o.Call)
			case o.Answer.Index != index:
				t.Errorf("%s %s: asked as attachment %d, want %d", q.Kind, server, o.Answer.Index, index)
			case o.Answer.Text != fmt.Sprintf("question %d", j):
				t.Errorf("%s %s: answer to %q", q.Kind, server, o.Answer.Text)
			case !strings.HasPrefix(q.Kind, "tcp") && o.From != server:
				t.Errorf("%s %s: answer from %s", q.Kind, server, o.From)
			case !strings.HasPrefix(q.Kind, "udp") && o.Peer != server:
				t.Errorf("%s %s: connected to %s", q.Kind, server, o.Peer)
			case o.Answer.Cgroup && o.Answer.Original != server && !isDNSAddress(server.Addr()):
				t.Errorf("%s %s: found to have asked %s", q.Kind, server, o.Answer.Original)
			}
		}
	}
}

// isDNSAddress is true of the addresses at which the host may ask too.
func isDNSAddress(a netip.Addr) bool {
	_, ok := datapath.CgroupIndex(a)
	return ok
}

// unanswered checks that no question was, for one of the reasons.
func unanswered(t *testing.T, asked []question, all [][]outcome, reasons ...unix.Errno) {
	t.Helper()
	for i, q := range asked {
		for j, o := range all[i] {
			ok := false
			for _, r := range reasons {
				ok = ok || o.Errno == r
			}
			if !ok {
				t.Errorf("%s %s: %+v, want one of %v", q.Kind, q.Servers[j], o, reasons)
			}
		}
	}
}
