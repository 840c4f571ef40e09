// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// discard is where nobody listens, and what arrives is of no use.
var discard = netip.MustParseAddrPort("127.0.0.1:9")

// linkEach holds all programs of a cgroup by pinned links, as ABI 2 did.
func linkEach(t *testing.T, d *Datapath, id string) {
	t.Helper()
	r := d.known[id].record
	if err := d.ours.leave(r); err != nil {
		t.Fatal(err)
	}
	err := onCgroup(r.Scope, func(fd int) error {
		var errs []error
		for _, h := range cgroupHooks(&d.bpf.bpfPrograms, d.ours)[1:] {
			errs = append(errs, cgroup{pinnedLink{d.ours}}.hold(h, d.pins.attached(id), fd))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A program gives way to the next in one step: there is no moment in which none of them runs, or both do.
func TestProgramsOfACgroupGiveWayInOneStep(t *testing.T) {
	d := open(t, pinDir(t))
	tg := cgroupTarget(t)
	id := attach(t, d, tg)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist})
	refused := refusing(t, tg)
	h := d.hooks(d.known[id].record)[slices.IndexFunc(d.hooks(d.known[id].record), func(h hook) bool { return h.name == "sendmsg4" })]
	twin, err := d.twin(h.program)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = closeBPF(twin) }()
	next := h
	next.program = twin
	err = onCgroup(tg.CgroupID, func(fd int) error {
		var errs []error
		for range 5000 {
			errs = append(errs, h.by.hold(next, "", fd), h.by.hold(h, "", fd))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, d, id)
}

// A new daemon takes over what it finds, programs without links and the links of ABI 2, and the workload does not notice.
func TestProgramsOfACgroupAreTakenOver(t *testing.T) {
	for name, earlier := range map[string]bool{"without links": false, "links of ABI 2": true} {
		t.Run(name, func(t *testing.T) {
			dir := pinDir(t)
			d, err := openRenewed(Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := errors.Join(d.Close(), RemoveAll(dir)); err != nil {
					t.Error(err)
				}
			})
			tg := cgroupTarget(t)
			id := attachOnly(t, d, tg)
			replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist})
			hooks, pins := len(d.hooks(d.known[id].record)), 1
			if earlier {
				linkEach(t, d, id)
				pins = hooks
			}
			refused := refusing(t, tg)
			for range 5 {
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				if earlier {
					if err := os.Rename(d.pins.base(), d.pins.version(2)); err != nil {
						t.Fatal(err)
					}
				}
				before := programsOn(t, tg)
				if d, err = openRenewed(Config{Dir: dir}); err != nil {
					t.Fatal(err)
				}
				after := programsOn(t, tg)
				if len(after) != hooks || slices.ContainsFunc(before, func(p ebpf.ProgramID) bool { return slices.Contains(after, p) }) {
					t.Errorf("programs %v, were %v", after, before)
				}
			}
			refused(t, d, id)
			if got := d.occupied(t, tg); len(got) != hooks || len(slices.Compact(got)) != hooks {
				t.Errorf("programs at %v", got)
			}
			if got := pinned(t, dir); len(got) != pins {
				t.Errorf("pins %v", got)
			}
			if err := d.Detach(id); err != nil {
				t.Fatal(err)
			}
			if left := append(d.occupied(t, tg), pinned(t, dir)...); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// refusing has a workload in a cgroup send what its policy forbids, until it is asked whether all of it was refused by
// sendmsg, once each: that refuses what has no length yet, while what it lets pass is dropped as a packet.
func refusing(t *testing.T, tg target.Target) (refused func(t *testing.T, d *Datapath, id string)) {
	t.Helper()
	const count = 1000
	w := testenv.StartWorkload(t, nil, &testenv.Cgroup{Path: tg.Name})
	var enough atomic.Bool
	var sent, tried int
	var sending sync.WaitGroup
	sending.Go(func() {
		for ; !enough.Load(); tried += count {
			sent += w.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: toForbidden, Count: count}).Sent
		}
	})
	end := func() {
		enough.Store(true)
		sending.Wait()
	}
	t.Cleanup(end)
	return func(t *testing.T, d *Datapath, id string) {
		t.Helper()
		end()
		c, err := d.Counters(id)
		if err != nil || sent != 0 || c.PacketsDropped != uint64(tried) || c.BytesDropped != 0 {
			t.Errorf("%d of %d datagrams were sent, %d refusals and %d bytes of packets were counted (%v)", sent, tried, c.PacketsDropped, c.BytesDropped, err)
		}
	}
}

// programsOn lists those on a cgroup, of whomever.
func programsOn(t *testing.T, tg target.Target) (ids []ebpf.ProgramID) {
	t.Helper()
	err := onCgroup(tg.CgroupID, func(fd int) error {
		for _, h := range cgroupHooks(&bpfPrograms{}, nil) {
			on, err := link.QueryPrograms(link.QueryOptions{Target: fd, Attach: h.attach})
			if err != nil {
				return err
			}
			for _, p := range on.Programs {
				ids = append(ids, p.ID)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// Others' programs on a cgroup are not ours to touch, under whatever name, with links or without, and also if nobody can
// tell by the pinned maps any more.
func TestForeignProgramsOfACgroupAreLeftAlone(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	tg := cgroupTarget(t)
	foreign := func() {
		kind := ebpf.CGroupSKB
		for _, h := range cgroupHooks(&bpfPrograms{}, nil) {
			if strings.HasPrefix(h.name, "connect") {
				kind = ebpf.CGroupSockAddr
			}
			err := onCgroup(tg.CgroupID, func(fd int) error {
				return link.RawAttachProgram(link.RawAttachProgramOptions{
					Target: fd, Attach: h.attach, Program: theirs(t, kind, h.attach), Flags: unix.BPF_F_ALLOW_MULTI,
				})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	foreign()
	before := programsOn(t, tg)
	id := attachOnly(t, d, tg)
	foreign()
	with := programsOn(t, tg)
	theirs := slices.Clone(with)
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	theirs = slices.DeleteFunc(theirs, func(p ebpf.ProgramID) bool { return !slices.Contains(programsOn(t, tg), p) })
	if len(with) != 36 || len(theirs) != 24 || !slices.Equal(programsOn(t, tg), theirs) {
		t.Errorf("%d programs, then %v after %v", len(with), programsOn(t, tg), before)
	}

	attachOnly(t, d, tg)
	if err := errors.Join(d.Close(), os.RemoveAll(pins(dir).maps())); err != nil {
		t.Fatal(err)
	}
	if got := programsOn(t, tg); len(got) != 36 {
		t.Errorf("attached again: %d programs", len(got))
	}
	if err := RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got := programsOn(t, tg); !slices.Equal(got, theirs) {
		t.Errorf("programs %v in the end, want %v", got, theirs)
	}
}

// What is left on a cgroup that is nobody's lets everything through. While there is a verdict nothing passes.
func TestACgroupOfNobody(t *testing.T) {
	dir := pinDir(t)
	d := open(t, dir)
	tg := cgroupTarget(t)
	id := attach(t, d, tg)
	w := testenv.StartWorkload(t, nil, &testenv.Cgroup{Path: tg.Name})
	if err := d.disown(d.known[id]); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []testenv.ProbeKind{testenv.UDPSendto, testenv.UDPConnected} {
		if out := w.Probe(t, testenv.Probe{Kind: kind, To: discard}); out.Errno != unix.EPERM || out.Call == "connect" {
			t.Errorf("%s, under a verdict: %s, want EPERM when it is sent", kind, out)
		}
	}
	if err := d.takeAway(id, verdictHook); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []testenv.ProbeKind{testenv.UDPSendto, testenv.UDPConnected} {
		if out := w.Probe(t, testenv.Probe{Kind: kind, To: discard}); out.Sent != 1 {
			t.Errorf("%s, without one: %s", kind, out)
		}
	}
}

// A cgroup that was removed is gone, though it has its links for as long as a socket of it is open. Its attachment ends.
func TestARemovedCgroupWithSockets(t *testing.T) {
	d := open(t, pinDir(t))
	tg := cgroupTarget(t)
	w := testenv.StartWorkload(t, nil, &testenv.Cgroup{Path: tg.Name})
	id := attachOnly(t, d, tg)
	listener, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	w.Flood(t, listener.LocalAddr().(*net.UDPAddr).AddrPort())
	root := filepath.Dir(tg.Name)
	if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(w.PID())), 0); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the cgroup is removed", func() bool { return os.Remove(tg.Name) == nil })
	if l, info, err := d.ours.open(filepath.Join(d.pins.attached(id), verdictHook)); err != nil || seatOf(info).target == 0 {
		t.Errorf("the link has gone with its cgroup: %v", err)
	} else if err := closeBPF(l); err != nil {
		t.Error(err)
	}
	if err := d.Attach(id, tg); !errors.Is(err, ErrVanished) {
		t.Errorf("attach: %v, want ErrVanished", err)
	}
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	// What is left of it lets its sockets send.
	if err := listener.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := listener.Read(make([]byte, 100)); err != nil {
		t.Error(err)
	}
}
