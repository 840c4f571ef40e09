// SPDX-License-Identifier: Apache-2.0

package target

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// A directory stands for the cgroup and another for /proc.
func TestLook(t *testing.T) {
	cgroup, proc := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	process := func(pid, capabilities string, namespace int) {
		t.Helper()
		write(filepath.Join(proc, pid, "status"), "Name:\tx\nCapEff:\t"+capabilities+"\n")
		if err := os.Mkdir(filepath.Join(proc, pid, "ns"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(fmt.Sprintf("net:[%d]", namespace), filepath.Join(proc, pid, "ns/net")); err != nil {
			t.Fatal(err)
		}
	}
	process("self", "000001ffffffffff", 1)
	process("10", "0000000000000000", 1)
	process("11", "0000000000001000", 1) // CAP_NET_ADMIN
	process("12", "0000000000002000", 2) // CAP_NET_RAW
	process("13", "0000000000000001", 2)
	write(filepath.Join(cgroup, "cgroup.procs"), "10\n11\n")
	write(filepath.Join(cgroup, "child/cgroup.procs"), "12\n13\n99\n") // the last has ended

	if got, want := look(cgroup, proc), (Occupants{Capable: 2, Elsewhere: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	var many string
	for range maxProcesses {
		many += "10\n"
	}
	write(filepath.Join(cgroup, "last/cgroup.procs"), many)
	if got := look(cgroup, proc); !got.More {
		t.Errorf("of more than %d processes: %+v", maxProcesses, got)
	}
}

// TestLookSockets: what a process has opened where it is now does not matter,
// what it brought along does.
func TestLookSockets(t *testing.T) {
	cg := testenv.NewCgroup(t)
	child := cg.Child(t, "child")
	ns := testenv.NewNS(t)
	wants := func(what string, want int) {
		t.Helper()
		if got := Look(cg.Path); got.Connected != want || got.More {
			t.Errorf("%s: %+v, want %d connected", what, got, want)
		}
	}
	testenv.StartWorkload(t, nil, cg).Serve(t, 7001)
	testenv.StartWorkload(t, ns, child).Serve(t, 7001)
	wants("sockets of its own", 0)

	bring := func(ns *testenv.NS, family, kind, protocol int) {
		t.Helper()
		var fd int
		var err error
		open := func() { fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol) }
		if ns == nil {
			open()
		} else {
			ns.Do(open)
		}
		if err != nil {
			t.Fatal(err)
		}
		socket := os.NewFile(uintptr(fd), "socket")
		defer socket.Close()
		sleep := exec.Command("sleep", "1000")
		sleep.ExtraFiles = []*os.File{socket}
		testenv.Start(t, sleep, ns, child)
	}
	n := 0
	for _, tt := range []struct {
		name                   string
		ns                     *testenv.NS
		family, kind, protocol int
		counts                 bool
	}{
		{"unix", nil, unix.AF_UNIX, unix.SOCK_STREAM, 0, false},
		{"raw", nil, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, true},
		{"packet", ns, unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_IP)), true},
	} {
		bring(tt.ns, tt.family, tt.kind, tt.protocol)
		if tt.counts {
			n++
		}
		wants(tt.name, n)
	}

	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var config net.ListenConfig
		config.SetMultipathTCP(true)
		multipath, err := config.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		config.SetMultipathTCP(false)
		plain, err := config.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		udp, err := config.ListenPacket(t.Context(), "udp", address)
		if err != nil {
			t.Fatal(err)
		}
		for _, socket := range []interface{ File() (*os.File, error) }{
			multipath.(*net.TCPListener), plain.(*net.TCPListener), udp.(*net.UDPConn),
		} {
			file, err := socket.File()
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			sleep := exec.Command("sleep", "1000")
			sleep.ExtraFiles = []*os.File{file}
			testenv.Start(t, sleep, nil, cg)
			n++
			wants(fmt.Sprintf("%T at %s", socket, address), n)
		}
		for _, c := range []io.Closer{multipath, plain, udp} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
