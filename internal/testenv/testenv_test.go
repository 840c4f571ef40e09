// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func TestNamespacesAreApart(t *testing.T) {
	Require(t, Root)
	a, b := NewNS(t), NewNS(t)
	Veth(t, End{a, "va", []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}},
		End{b, "vb", []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24")}})
	for name, ns := range map[string]*NS{"va": a, "vb": b} {
		ns.Do(func() {
			links, err := netlink.LinkList()
			if err != nil {
				t.Fatal(err)
			}
			if len(links) != 2 || links[1].Attrs().Name != name {
				t.Errorf("links %v, want lo and %s", links, name)
			}
		})
	}
	if _, err := netlink.LinkByName("va"); err == nil {
		t.Error("the suite's namespace has va, and Do did not leave the other one")
	}
}

func TestDoReturnsFromAFailedTest(t *testing.T) {
	Require(t, Root)
	before, err := os.Readlink(threadNetns)
	if err != nil {
		t.Fatal(err)
	}
	ns := NewNS(t)
	t.Run("skips inside Do", func(t *testing.T) {
		defer func() {
			if after, err := os.Readlink(threadNetns); err != nil || after != before {
				t.Errorf("network namespace %s after Do (%v), want %s", after, err, before)
			}
		}()
		done := make(chan struct{})
		go func() {
			defer close(done)
			ns.Do(runtime.Goexit) // as t.FailNow does
		}()
		<-done
	})
}

func TestWorld(t *testing.T) {
	Require(t, Root)
	for name, device := range map[string]Device{"veth": VethDevice, "tap": TapDevice, "tun": TunDevice, "bridge port": BridgePort} {
		t.Run(name, func(t *testing.T) {
			w := NewWorld(t, NewNS(t), device)
			EchoServer(t, w.Outside, 7)
			arrived := Observe(t, w.Outside, "eth0")
			workload := StartWorkload(t, w.Workload, nil)

			for _, to := range []string{"198.51.100.9", "203.0.113.200", "169.254.169.254", "2001:db8:100::5", "2001:db8:200::6"} {
				addr := netip.MustParseAddr(to)
				for _, kind := range []ProbeKind{TCP, UDPConnected, UDPSendto, UDPSendmmsg, Echo} {
					probe := Probe{Kind: kind, To: netip.AddrPortFrom(addr, 7), Wait: Patience}
					out := workload.Probe(t, probe)
					if !out.Answered || out.Errno != 0 {
						t.Errorf("%s %s: %s", kind, to, out)
					}
				}
				// Each in the protocol that it claims.
				for protocol, n := range map[uint8]int{unix.IPPROTO_UDP: 3, unix.IPPROTO_TCP: 1} {
					arrived.Await(t, n, func(p Packet) bool { return p.Dst == addr && p.Protocol == protocol && p.Port == 7 })
				}
				workload.Probe(t, Probe{Kind: Raw, Protocol: 47, To: netip.AddrPortFrom(addr, 0), Count: 3})
				arrived.Await(t, 3, func(p Packet) bool { return p.Dst == addr && p.Protocol == 47 })
			}
		})
	}
}

func TestFlowsFromOutside(t *testing.T) {
	Require(t, Root)
	w := NewWorld(t, Self(t), VethDevice)
	workload := StartWorkload(t, w.Workload, nil)
	workload.Serve(t, 8080)
	outside := StartWorkload(t, w.Outside, nil)
	for _, addr := range []netip.Addr{w.Addr4, w.Addr6} {
		conn := outside.Connect(t, netip.AddrPortFrom(addr, 8080))
		if !conn.Echoes(t, Patience) {
			t.Errorf("no echo from %s", addr)
		}
	}
}

func TestMappedProbesAreIPv4(t *testing.T) {
	Require(t, Root)
	w := NewWorld(t, NewNS(t), VethDevice)
	EchoServer(t, w.Outside, 7)
	arrived := Observe(t, w.Outside, "eth0")
	to := netip.MustParseAddrPort("198.51.100.1:7")
	workload := StartWorkload(t, w.Workload, nil)
	for i, kind := range []ProbeKind{TCP, UDPConnected, UDPSendto, UDPSendmmsg} {
		if out := workload.Probe(t, Probe{Kind: kind, To: to, Mapped: true, Wait: Patience}); !out.Answered {
			t.Errorf("%s: %s", kind, out)
		}
		if kind != TCP {
			arrived.Await(t, i, func(p Packet) bool { return p.Dst == to.Addr() && p.Protocol == unix.IPPROTO_UDP })
		}
	}
}

func TestProbeReportsErrno(t *testing.T) {
	Require(t, Root)
	ns := NewNS(t)
	workload := StartWorkload(t, ns, nil)
	for _, kind := range []ProbeKind{TCP, UDPConnected, UDPSendto, UDPSendmmsg, Echo, Raw} {
		out := workload.Probe(t, Probe{Kind: kind, To: netip.MustParseAddrPort("192.0.2.1:7"), Protocol: 132})
		if out.Errno != unix.ENETUNREACH || out.Sent != 0 || out.Answered {
			t.Errorf("%s without a route: %s, want ENETUNREACH", kind, out)
		}
	}
	out := workload.Probe(t, Probe{Kind: TCP, To: netip.MustParseAddrPort("127.0.0.1:7")})
	if out.Errno != unix.ECONNREFUSED {
		t.Errorf("connect to a closed port: %s, want ECONNREFUSED", out)
	}
}

func TestFloodIsCountedExactly(t *testing.T) {
	Require(t, Root)
	w := NewWorld(t, NewNS(t), VethDevice)
	arrived := Observe(t, w.Outside, "eth0")
	to := netip.MustParseAddrPort("203.0.113.5:9")
	workload := StartWorkload(t, w.Workload, nil)
	before := Monotonic()
	stop := workload.Flood(t, to)
	match := func(p Packet) bool { return p.Dst == to.Addr() && p.Protocol == unix.IPPROTO_UDP }
	arrived.Await(t, 1000, match)
	sent := stop().Sent
	after := Monotonic()
	arrived.Await(t, sent, match)
	if seen := arrived.Sum(t, match); seen.Count != sent || seen.Next != sent || seen.LastSent < before || seen.LastSent > after {
		t.Errorf("%d packets of %d arrived, number %d the last, sent at %s; flood lasted from %s to %s",
			seen.Count, sent, seen.Next-1, seen.LastSent, before, after)
	}
}

// What there is no room for has not been sent, nor refused, and is not missing among the numbers.
func TestNoRoomIsNoRefusal(t *testing.T) {
	Require(t, Root)
	w := NewWorld(t, NewNS(t), VethDevice)
	w.Workload.Do(func() {
		// Nobody is there: what is sent waits for that to be known.
		s, err := openSender(Probe{Kind: UDPSendto, To: netip.MustParseAddrPort("10.77.0.99:9"), Count: 100})
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(s.fd)
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil { // as little as can be
			t.Error(err)
			return
		}
		s.send()
		if s.out.Errors[unix.EAGAIN] == 0 || s.out.Sent+s.out.Errors[unix.EAGAIN] != s.Count || int(s.n) != s.out.Sent {
			t.Errorf("%s, %v; the next packet is number %d", s.out, s.out.Errors, s.n)
		}
	})
}

var sayCgroup = NewFunc("say-cgroup", func(args []string) error {
	text, err := os.ReadFile("/proc/self/cgroup")
	fmt.Printf("%s %s", args[0], text)
	return err
})

func TestFuncRunsInCgroup(t *testing.T) {
	Require(t, Root, Cgroup2)
	cg := NewCgroup(t).Child(t, "inner")
	cmd := sayCgroup.Command("hello")
	var out strings.Builder
	cmd.Stdout = &out
	Start(t, cmd, nil, cg)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	root, err := cgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	if want := "0::" + strings.TrimPrefix(cg.Path, root) + "\n"; !strings.HasPrefix(out.String(), "hello ") || !strings.Contains(out.String(), want) {
		t.Errorf("the process says %q, want %q in it", out.String(), want)
	}
}

func TestRemoveKillsWhatRunsInACgroup(t *testing.T) {
	Require(t, Root, Cgroup2)
	cg := NewCgroup(t)
	w := StartWorkload(t, nil, cg.Child(t, "inner"))
	cg.Remove(t)
	if _, err := os.Stat(cg.Path); !os.IsNotExist(err) {
		t.Errorf("cgroup is still there: %v", err)
	}
	if err := w.cmd.Wait(); err == nil {
		t.Error("the process ended by itself, want it killed")
	}
}

func TestBPFFSTakesPins(t *testing.T) {
	Require(t, Root)
	dir := BPFFS(t)
	if err := os.Mkdir(dir+"/v1", 0o700); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || uint32(st.Type) != unix.BPF_FS_MAGIC {
		t.Errorf("file system type %#x (%v), want a bpffs", st.Type, err)
	}
}

func TestPollGivesUp(t *testing.T) {
	if poll(time.Millisecond, func() bool { return false }) {
		t.Error("a condition that never holds held")
	}
}
