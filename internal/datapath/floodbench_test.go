// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

const (
	floodRules   = 1000
	floodRounds  = 41   // what is looked for is a tenth of what a packet takes
	floodPackets = 5000 // at a time
	floodTimes   = 5    // a round, of which the median counts
	floodBatch   = 100  // a sendmmsg
)

// floodPrefix is the nth of the prefixes that are allowed, no two of which touch.
func floodPrefix(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(n >> 7), byte(n << 1), 0}), 24)
}

// flooder sends UDP from where it was started, with nothing else on its processor.
// Packets cross a veth within the call that sends them: its time is theirs, with
// the filter's at the other end. It uses a packet socket, which leaves out what
// makes a datagram of the sender's bytes, or plain UDP, as a cgroup's processes do.
type flooder struct {
	orders io.Writer
	times  *bufio.Scanner
}

var flooding = testenv.NewFunc("flood", func(args []string) error {
	if args[0] == "udp" {
		return floodAsTold(openUDPSocket, datagramTo)
	}
	return floodAsTold(openPacketSocket, frameTo)
})

func startFlooder(b *testing.B, kind string, ns *testenv.NS, cg *testenv.Cgroup) *flooder {
	b.Helper()
	cmd := flooding.Command(kind)
	orders, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	times, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	testenv.Start(b, cmd, ns, cg)
	return &flooder{orders, bufio.NewScanner(times)}
}

// send returns what one of as many packets took. They go to as many destinations
// in turn, or all to an address that is not allowed if there are none.
func (f *flooder) send(b *testing.B, packets, destinations int) time.Duration {
	b.Helper()
	if _, err := fmt.Fprintln(f.orders, packets, destinations); err != nil {
		b.Fatalf("flood: %v", err)
	}
	if !f.times.Scan() {
		b.Fatalf("flood: no answer: %v", f.times.Err())
	}
	ns, err := strconv.ParseInt(f.times.Text(), 10, 64)
	if err != nil {
		b.Fatalf("flood: %v", err)
	}
	return time.Duration(ns) / time.Duration(packets)
}

// median is what a packet takes once what can be remembered is.
func (f *flooder) median(b *testing.B, destinations int) time.Duration {
	b.Helper()
	f.send(b, floodRules, destinations)
	var took []time.Duration
	for range floodTimes {
		took = append(took, f.send(b, floodPackets, destinations))
	}
	slices.Sort(took)
	return took[floodTimes/2]
}

// floodAsTold is the process's side.
func floodAsTold(open func() (int, error), to func(netip.Addr) unix.Msghdr) error {
	runtime.LockOSThread()
	var last unix.CPUSet
	last.Set(runtime.NumCPU() - 1)
	if err := unix.SchedSetaffinity(0, &last); err != nil {
		return fmt.Errorf("keep to one processor: %w", err)
	}
	first := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}
	if err := unix.SchedSetAttr(0, first, 0); err != nil {
		return fmt.Errorf("go before others: %w", err)
	}
	fd, err := open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var packets, destinations int
		if _, err := fmt.Sscan(lines.Text(), &packets, &destinations); err != nil {
			return err
		}
		batches := newBatches(destinations, to)
		start := time.Now()
		for sent := 0; sent < packets; sent += floodBatch {
			batch := batches[sent/floodBatch%len(batches)]
			n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&batch[0])), floodBatch, 0, 0, 0)
			if errno != 0 {
				return fmt.Errorf("send: %w", errno)
			}
			if n != floodBatch {
				return fmt.Errorf("send: %d of %d packets", n, floodBatch)
			}
		}
		if _, err := fmt.Fprintln(os.Stdout, time.Since(start).Nanoseconds()); err != nil {
			return err
		}
	}
	return nil
}

// message is struct mmsghdr of sendmmsg(2).
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

func newBatches(destinations int, to func(netip.Addr) unix.Msghdr) [][]message {
	var headers []unix.Msghdr
	for n := range destinations {
		headers = append(headers, to(floodPrefix(n*7%floodRules).Addr().Next()))
	}
	if destinations == 0 {
		headers = append(headers, to(floodPrefix(0).Addr().Prev()))
	}
	batches := make([][]message, max(1, destinations/floodBatch))
	for i := range batches {
		batches[i] = make([]message, floodBatch)
		for j := range batches[i] {
			batches[i][j].header = headers[(i*floodBatch+j)%len(headers)]
		}
	}
	return batches
}

// nobody has this hardware address: what is sent there is not taken behind the filter.
var nobody = []byte{2, 0, 0, 0, 0, 0x99}

var (
	floodFrom    = netip.MustParsePrefix("10.77.0.2/24")
	floodGateway = netip.MustParseAddr("10.77.0.1")
	floodPayload = make([]byte, 18) // fills the smallest frame
)

func openPacketSocket() (int, error) {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func frameTo(to netip.Addr) unix.Msghdr {
	packet := ipv4{src: floodFrom.Addr().String(), dst: to.String(), proto: protoUDP}.packet(join(udp(4000, 9), floodPayload))
	frame := join(nobody, nobody, be16(etherIPv4), sealed(packet))
	return unix.Msghdr{Iov: &unix.Iovec{Base: &frame[0], Len: uint64(len(frame))}, Iovlen: 1}
}

func openUDPSocket() (int, error) {
	return unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
}

func datagramTo(to netip.Addr) unix.Msghdr {
	name := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&name.Port))[:], 9)
	return unix.Msghdr{Name: (*byte)(unsafe.Pointer(name)), Namelen: unix.SizeofSockaddrInet4,
		Iov: &unix.Iovec{Base: &floodPayload[0], Len: uint64(len(floodPayload))}, Iovlen: 1}
}

// floodScene is a host, this namespace, with the device to filter at, and the
// namespace of the workload.
func floodScene(b *testing.B) (workload *testenv.NS, tg target.Target) {
	b.Helper()
	workload = testenv.NewNS(b)
	testenv.Veth(b, testenv.End{NS: testenv.Self(b), Name: "work0"},
		testenv.End{NS: workload, Name: "eth0", Addrs: []netip.Prefix{floodFrom}})
	workload.Route(b, netip.MustParsePrefix("0.0.0.0/0"), floodGateway, "eth0")
	workload.Do(func() {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT,
				Family: unix.AF_INET, IP: floodGateway.AsSlice(), HardwareAddr: nobody})
		}
		if err != nil {
			b.Fatal(err)
		}
	})
	tg, err := target.ResolveInterface("work0", target.Ingress, "")
	if err != nil {
		b.Fatal(err)
	}
	return workload, tg
}

// floodFilter begins to filter, and returns how to end it.
type floodFilter struct {
	name  string
	begin func() (end func() error, err error)
}

// unfiltered is what filters are compared with.
var unfiltered = floodFilter{"no filter", func() (func() error, error) { return func() error { return nil }, nil }}

// byLink filters by a link.
func byLink[L link.Link](attach func() (L, error)) func() (func() error, error) {
	return func() (func() error, error) {
		l, err := attach()
		if err != nil {
			return nil, err
		}
		return l.Close, nil
	}
}

// byNetfence filters the target with 1,000 rules.
func byNetfence(b *testing.B, d *Datapath, tg target.Target) floodFilter {
	p := &policy.Policy{Mode: policy.ModeAllowlist}
	for n := range floodRules {
		p.Allow = append(p.Allow, policy.Rule{Prefix: floodPrefix(n)})
	}
	compiled := compile(b, p)
	return floodFilter{"Netfence", func() (func() error, error) {
		id := newID()
		if err := errors.Join(d.Attach(id, tg), d.Replace(id, compiled)); err != nil {
			return nil, err
		}
		return func() error { return d.Detach(id) }, nil
	}}
}

// against prints a table for one destination, and one for as many as rules.
func (f *flooder) against(b *testing.B, what string, filters []floodFilter) {
	b.Helper()
	for _, destinations := range []int{1, floodRules} {
		to := map[int]string{1: "one destination", floodRules: "1,000 destinations"}[destinations]
		var cases []benchCase
		for _, filter := range filters {
			cases = append(cases, benchCase{what + ", " + filter.name + ", " + to, func() time.Duration {
				end, err := filter.begin()
				if err != nil {
					b.Fatalf("%s: %v", filter.name, err)
				}
				took := f.median(b, destinations)
				if err := end(); err != nil {
					b.Fatalf("%s: %v", filter.name, err)
				}
				return took
			}})
		}
		compare(b, "a packet of a flood, 1,000 rules", floodRounds, cases)
	}
}

// BenchmarkFlood is what filters add to packets, as who floods has to pay for it.
func BenchmarkFlood(b *testing.B) {
	workload, tg := floodScene(b)
	d := open(b, pinDir(b))
	frames := startFlooder(b, "frames", workload, nil)
	empty := emptyProgram(b)
	atVeth := []floodFilter{unfiltered, {"empty program", byLink(func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Program: empty, Interface: tg.Ifindex, Attach: ebpf.AttachTCXIngress})
	})}, byNetfence(b, d, tg)}
	if _, err := exec.LookPath("nft"); err != nil {
		b.Log("nftables is not compared with: no nft in PATH")
	} else {
		checkNftRules(b, frames)
		atVeth = append(atVeth, floodFilter{"nftables", func() (func() error, error) {
			return func() error { return nft("delete table netdev fence") }, nft(nftRules("accept"))
		}})
	}

	cg := testenv.NewCgroup(b)
	job, err := target.ResolveCgroup(cg.Path)
	if err != nil {
		b.Fatal(err)
	}
	datagrams := startFlooder(b, "udp", workload, cg)
	nothing := emptyCgroupProgram(b)
	atCgroup := []floodFilter{unfiltered, {"empty program", byLink(func() (link.Link, error) {
		return link.AttachCgroup(link.CgroupOptions{Path: cg.Path, Attach: ebpf.AttachCGroupInetEgress, Program: nothing})
	})}, byNetfence(b, d, job)}
	for b.Loop() {
		frames.against(b, "veth", atVeth)
		datagrams.against(b, "cgroup", atCgroup)
	}
}

func nft(rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w\n%s", err, out)
	}
	return nil
}

// nftRules allow what floodPrefix does, at the hook where Netfence's filter is.
func nftRules(allow string) string {
	var elements []string
	for n := range floodRules {
		elements = append(elements, floodPrefix(n).String())
	}
	return fmt.Sprintf(`table netdev fence {
	set allowed { type ipv4_addr; flags interval; elements = { %s } }
	chain out { type filter hook ingress device "work0" priority 0; policy drop; ip daddr @allowed %s; meta protocol arp accept; }
}
`, strings.Join(elements, ", "), allow)
}

// checkNftRules shows that the rules let pass what they are to, and nothing else.
func checkNftRules(b *testing.B, f *flooder) {
	b.Helper()
	if err := nft(nftRules("counter accept")); err != nil {
		b.Fatal(err)
	}
	f.send(b, floodRules, floodRules)
	f.send(b, floodRules, 0)
	out, err := exec.Command("nft", "list", "chain", "netdev", "fence", "out").CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("counter packets %d ", floodRules)) {
		b.Fatalf("nft: want %d packets accepted: %v\n%s", floodRules, err, out)
	}
	if err := nft("delete table netdev fence"); err != nil {
		b.Fatal(err)
	}
}
