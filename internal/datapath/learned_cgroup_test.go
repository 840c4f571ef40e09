// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// sendtoWhenTold sends to the address by an unconnected socket, for each line that it reads.
var sendtoWhenTold = testenv.NewFunc("sendto-when-told", func(args []string) (err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	to := netip.MustParseAddrPort(args[0])
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(unix.Sendto(fd, lines.Bytes(), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}))
	}
	return nil
})

// What real sockets of a cgroup see of a learned address, its end, and its cut.
func TestLearnedAddressesOfACgroup(t *testing.T) {
	h := hostWithCgroup(t, domains(domain("a.example")))
	testenv.StartWorkload(t, h.outside, nil).Serve(t, 7777)
	service := hostService(t, h.ns, 5555)
	w := testenv.StartWorkload(t, h.ns, h.cg)
	server := netip.MustParseAddrPort("10.5.0.2:7777")
	tcpProbe := testenv.Probe{Kind: testenv.TCP, To: server, Wait: testenv.Patience}

	cmd := sendtoWhenTold.Command(server.String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	testenv.Start(t, cmd, h.ns, h.cg)
	lines := bufio.NewReader(out)
	sendto := func(when, want string) {
		t.Helper()
		if _, err := in.Write([]byte("hello\n")); err != nil {
			t.Fatal(err)
		}
		if line, err := lines.ReadString('\n'); err != nil || line != want+"\n" {
			t.Errorf("sendto %s: %q, %v; want %s", when, line, err, want)
		}
	}
	const sent, refused = "<nil>", "operation not permitted"

	if got := w.Probe(t, tcpProbe); got.Errno != unix.EPERM {
		t.Errorf("connect, not learned: %s, want EPERM", got)
	}
	sendto("not learned", refused)

	learn(t, h.d, h.id, "a.example", time.Hour, "10.5.0.2", "10.5.0.1", "127.0.0.1")
	conn := w.Connect(t, server)
	if !conn.Echoes(t, testenv.Patience) {
		t.Fatal("no echo from a learned address")
	}
	sendto("learned", sent)
	for _, to := range []string{"10.5.0.1:5555", "127.0.0.1:5555"} { // learned, but the host's own
		w.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: netip.MustParseAddrPort(to)})
	}
	nothingReached(t, h.ns, service)

	expireGrants(t, h.d)
	if !conn.Echoes(t, testenv.Patience) {
		t.Error("no echo on a connection that outlives the answer")
	}
	sendto("on a flow that outlives the answer", sent)
	if got := w.Probe(t, tcpProbe); got.Errno != unix.EPERM {
		t.Errorf("connect, expired: %s, want EPERM", got)
	}
	if got := w.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: server}); got.Errno != unix.EPERM {
		t.Errorf("sendto by another socket, expired: %s, want EPERM", got)
	}

	replace(t, h.d, h.id, domains(domain("b.example")))
	sendto("cut", refused)
	if conn.Echoes(t, 300*time.Millisecond) {
		t.Error("an echo after the name was cut")
	}
}
