// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/testenv"
)

// elsewhere opens sockets in other namespaces, with a responder.
func elsewhere(t *testing.T, d *datapath.Datapath, f *intercept.Front) *intercept.Elsewhere {
	t.Helper()
	serve := func(ctx context.Context, f *intercept.Front) error {
		done := respond(f, d)
		<-ctx.Done()
		err := f.Close()
		done.Wait()
		return err
	}
	e, err := intercept.NewElsewhere(d, f, serve, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("elsewhere: %v", err)
		}
	})
	return e
}

// Processes of a cgroup in a container's namespace are answered there, as the attachment that they are of and whomever
// they ask, and nobody else who is there is.
func TestElsewhere(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	cg, other := testenv.NewCgroup(t), testenv.NewCgroup(t)
	d := open(t)
	id, index := attach(t, d, cgroupTarget(t, cg), everywhere())
	_, otherIndex := attach(t, d, cgroupTarget(t, other), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	e := elsewhere(t, d, front(t, intercept.OpenCgroups, d))
	asked := append(questions(append(plainKinds, mappedKinds...), []string{"9.9.9.9", "127.0.0.11", "127.0.0.53", "10.77.0.1"}),
		questions(plainKinds, []string{"2620:fe::fe", "fd77::1", "::1"})...)
	look := func(cg *testenv.Cgroup, index uint32) {
		t.Helper()
		if refused, err := e.Look(cg.Path, index); refused != 0 || err != nil {
			t.Fatalf("look: %d processes refused: %v", refused, err)
		}
	}
	look(cg, index)
	unanswered(t, asked, ask(t, w.Workload, cg, asked...), unix.EPERM) // nobody was there yet

	testenv.StartWorkload(t, w.Workload, cg)
	look(cg, index)
	answered(t, index, asked, ask(t, w.Workload, cg, asked...))
	answered(t, index, asked, ask(t, nil, cg, asked...)) // of the same cgroup, on the host
	own := explicit(d.DNSAddress(id))
	answered(t, index, own, ask(t, w.Workload, cg, own...))

	t.Run("others who are there", func(t *testing.T) {
		// Of no cgroup, they may ask whom they like, but not by the sockets that were opened there.
		for _, kind := range []string{"udp", "tcp"} {
			explicit := []question{{Kind: kind, Servers: []netip.AddrPort{netip.MustParseAddrPort(d.DNSAddress(id))}}}
			unanswered(t, explicit, ask(t, w.Workload, nil, briefly(explicit)...), unix.EAGAIN, unix.EINPROGRESS)
		}
		// Of another one: not before it was looked at.
		for i, outcomes := range ask(t, w.Workload, other, briefly(asked[:3])...) {
			if o := outcomes[0]; o.Call == "" || o.Answer.Text != "" { // silence, or a connection that is closed
				t.Errorf("%s: %+v, want no answer", asked[i].Kind, o)
			}
		}
		testenv.StartWorkload(t, w.Workload, other)
		look(other, otherIndex)
		answered(t, otherIndex, asked, ask(t, w.Workload, other, asked...))
		theirs := explicit(d.DNSAddress(id))
		unanswered(t, theirs, ask(t, w.Workload, other, theirs...), unix.EPERM)
	})
	t.Run("interfaces that lead there", func(t *testing.T) {
		_, behind := attach(t, d, interfaceTarget(t, w.Link), everywhere())
		replace(t, d, id, everywhere())
		chain := d.Chain(index)
		if len(chain) != 2 || chain[0].Index != index || chain[1].Index != behind {
			t.Errorf("chain %+v, want %d, then %d", chain, index, behind)
		}
		if chain := d.Chain(behind); len(chain) != 1 {
			t.Errorf("of the interface alone: %+v", chain)
		}
	})
	t.Run("taking the listener's place", func(t *testing.T) {
		port := netip.MustParseAddrPort(d.DNSAddress(id)).Port()
		bind := question{Kind: "udp", Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}, Bind: netip.AddrPortFrom(netip.IPv4Unspecified(), port)}
		if o := ask(t, w.Workload, cg, bind)[0][0]; o.Call != "bind: operation not permitted" {
			t.Errorf("bind: %+v", o)
		}
	})
	escaped(t, outside, w.Workload, cg)

	// The namespace is nobody's business any more when the last process has left it.
	pids, err := os.ReadFile(filepath.Join(cg.Path, "cgroup.procs")) // cgroup.kill would kill who is started there later as well
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range strings.Fields(string(pids)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, "sockets are closed", func() bool {
		var sockets []byte
		w.Workload.Do(func() { sockets, err = os.ReadFile("/proc/thread-self/net/udp") })
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(sockets), "\n") == 1 // proc_net(5): the heading
	})
	unanswered(t, asked, ask(t, w.Workload, cg, asked...), unix.EPERM)
}

// A namespace to which nothing leads has no id before its sockets are opened.
func TestElsewhereAlone(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	ns, cg := testenv.NewNS(t), testenv.NewCgroup(t)
	d := open(t)
	_, index := attach(t, d, cgroupTarget(t, cg), everywhere())
	e := elsewhere(t, d, front(t, intercept.OpenCgroups, d))
	testenv.StartWorkload(t, ns, cg)
	if refused, err := e.Look(cg.Path, index); refused != 0 || err != nil {
		t.Fatalf("look: %d processes refused: %v", refused, err)
	}
	asked := append(questions(append(plainKinds, mappedKinds...), []string{"9.9.9.9", "127.0.0.11"}), questions(plainKinds, []string{"2620:fe::fe", "::1"})...)
	answered(t, index, asked, ask(t, ns, cg, asked...))
}

// A port that somebody has there already is left to them: who asks is refused.
func TestElsewhereWithoutRoom(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	ns, cg := testenv.NewNS(t), testenv.NewCgroup(t)
	d := open(t)
	id, index := attach(t, d, cgroupTarget(t, cg), everywhere())
	e := elsewhere(t, d, front(t, intercept.OpenCgroups, d))
	port := netip.MustParseAddrPort(d.DNSAddress(id)).Port()
	ns.ListenPacket(t, "udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
	testenv.StartWorkload(t, ns, cg)
	refused, err := e.Look(cg.Path, index)
	if refused != 1 || err == nil {
		t.Errorf("look: %d refused, %v; want 1, and why", refused, err)
	}
	asked := questions(plainKinds, []string{"127.0.0.11"})
	unanswered(t, asked, ask(t, ns, cg, asked...), unix.EPERM)
}
