// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
)

// byFilters is a configuration that holds interfaces by clsact.
func byFilters(t *testing.T) Config {
	t.Helper()
	testenv.Require(t, testenv.Interfaces)
	return Config{Dir: pinDir(t), InterfaceHook: HookClsact}
}

// discipline deletes, or makes, a queueing discipline at the place of clsact.
func discipline(t *testing.T, ifindex int, kind string, do func(netlink.Qdisc) error) {
	t.Helper()
	err := do(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  kind,
	})
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
}

// theirFilter puts somebody else's filter where ours are, before them.
func theirFilter(t *testing.T, tg target.Target, priority uint16, p *ebpf.Program) *netlink.BpfFilter {
	t.Helper()
	f := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: tg.Ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Priority: priority, Protocol: unix.ETH_P_ALL,
		},
		Fd: p.FD(), Name: "theirs", DirectAction: true,
	}
	if err := netlink.FilterAdd(f); err != nil {
		t.Fatal(err)
	}
	return f
}

// filtersOf are the names of the filters on a device, both sides, in order.
func filtersOf(t *testing.T, ifindex int) (names []string) {
	t.Helper()
	for _, side := range []string{"ingress", "egress"} {
		filters, err := listFilters(ifindex, filterParents[side])
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range filters {
			names = append(names, side+" "+f.(*netlink.BpfFilter).Name)
		}
	}
	return names
}

// Another program takes the place of the one before it in one step.
func TestFilterIsUpdatedWithoutAGap(t *testing.T) {
	f := newFlooded(t, openWith(t, byFilters(t)))
	a := f.d.known[f.id]
	for range 400 {
		for _, h := range f.d.hooks(a.record) {
			if err := h.by.update(h, f.d.pins.attached(f.id), a.record); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.noGap(t)
	if got := filtersOf(t, f.tg.Ifindex); len(got) != 2 {
		t.Errorf("filters %q", got)
	}
}

func TestFilterTakesTheLeadWithoutAGap(t *testing.T) {
	f := newFlooded(t, openWith(t, byFilters(t)))
	a := f.d.known[f.id]
	h := f.d.hooks(a.record)[0]
	next, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "next", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TC_ACT_UNSPEC
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = closeBPF(next) }()
	for range 20 {
		theirFilter(t, f.tg, filterPriority, next)
		if err := h.by.watch(h, f.d.pins.attached(f.id), a.record, int(a.record.Ifindex)); !errors.Is(err, errBehind) {
			t.Fatalf("another is before ours: %v", err)
		}
		f.d.look(a, 0, nil)
		a.leads = leads{}
		if err := h.by.watch(h, f.d.pins.attached(f.id), a.record, int(a.record.Ifindex)); err != nil {
			t.Fatal(err)
		}
		for _, other := range inboundFilters(t, f.tg.Ifindex) {
			if other.Name == "theirs" {
				if err := netlink.FilterDel(other); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	f.noGap(t)
	if got := filtersOf(t, f.tg.Ifindex); len(got) != 2 {
		t.Errorf("filters %q", got)
	}
}

func inboundFilters(t *testing.T, ifindex int) (all []*netlink.BpfFilter) {
	t.Helper()
	filters, err := listFilters(ifindex, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range filters {
		all = append(all, f.(*netlink.BpfFilter))
	}
	return all
}

// What others do to the discipline and its filters is seen at once, put right and told of.
// A crash may come before a filter has given way to the one that runs before others.
// The next daemon knows one of them, and a detach leaves none.
func TestFilterLeavesNoTwin(t *testing.T) {
	for name, restart := range map[string]bool{"detach": false, "start": true} {
		t.Run(name, func(t *testing.T) {
			f := newFlooded(t, openWith(t, byFilters(t)))
			a := f.d.known[f.id]
			h := f.d.hooks(a.record)[0]
			p, handle, _, err := h.by.(clsact).find(h, f.d.pins.attached(f.id), a.record)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.FilterAdd(p.filter(handle^otherHandle, h.program.FD())); err != nil {
				t.Fatal(err)
			}
			if restart {
				a.mu.Lock()
				a.earlier = true
				err := f.d.renew(a)
				a.mu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
				if got := filtersOf(t, f.tg.Ifindex); len(got) != 2 {
					t.Errorf("after the start of another daemon: %q", got)
				}
			}
			f.allowed.stop()
			f.forbidden.stop()
			if err := f.d.Detach(f.id); err != nil {
				t.Fatal(err)
			}
			if got := filtersOf(t, f.tg.Ifindex); len(got) != 0 {
				t.Errorf("after the detach: %q", got)
			}
		})
	}
}

func TestFilterIsPutBack(t *testing.T) {
	told := &incidents{}
	cfg := byFilters(t)
	cfg.Events = told.add
	f := newFlooded(t, openWith(t, cfg))
	watch(t, f.d)
	for what, undo := range map[string]func(){
		"the discipline deleted": func() { discipline(t, f.tg.Ifindex, "clsact", netlink.QdiscDel) },
		"the filter deleted": func() {
			for _, filter := range inboundFilters(t, f.tg.Ifindex) {
				if err := netlink.FilterDel(filter); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		undo()
		testenv.Eventually(t, what+": told of", func() bool {
			kinds := told.take()
			return len(kinds) > 0 && kinds[0] == incidentLost
		})
		if got := filtersOf(t, f.tg.Ifindex); len(got) != 2 {
			t.Errorf("%s: filters %q", what, got)
		}
	}
	back := testenv.Monotonic()
	f.arrived.Await(t, f.arrived.Sum(t, toPort(f.allowed.to)).Count+3000, toPort(f.allowed.to))
	if last := f.arrived.Sum(t, toPort(f.forbidden.to)).LastSent; last > back {
		t.Errorf("a forbidden packet sent %s after the filter was back passed", last-back)
	}
	f.allowed.stop()
	f.forbidden.stop()

	// Where an ingress discipline is, clsact cannot be.
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: f.tg.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	func() {
		defer f.d.lock(f.id).mu.Unlock()
		discipline(t, f.tg.Ifindex, "clsact", netlink.QdiscDel)
		if err := netlink.QdiscAdd(ingress); err != nil {
			t.Fatal(err)
		}
	}()
	testenv.Eventually(t, "a problem", func() bool {
		problems := f.d.Problems()
		return len(problems) == 1 && strings.Contains(problems[0], "ingress qdisc")
	})
	if err := netlink.QdiscDel(ingress); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "no problem any more", func() bool { return len(f.d.Problems()) == 0 && len(filtersOf(t, f.tg.Ifindex)) == 2 })
}

// What the kernel tells of a filter is looked at also where somebody is at the attachment at that moment.
func TestFilterIsPutBackBehindOthers(t *testing.T) {
	d := openWith(t, byFilters(t))
	tg := vethTarget(t, "v0")
	a := d.lock(attachOnly(t, d, tg))
	for _, filter := range inboundFilters(t, tg.Ifindex) {
		if err := netlink.FilterDel(filter); err != nil {
			t.Error(err)
		}
	}
	netns, err := target.NetnsCookie()
	if err != nil {
		t.Error(err)
	}
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		d.lookAtDevice(netns, tg.Ifindex, nil)
	}()
	select {
	case <-looked:
		t.Error("not looked at")
	case <-time.After(100 * time.Millisecond):
	}
	a.mu.Unlock()
	<-looked
	if got := filtersOf(t, tg.Ifindex); len(got) != 2 {
		t.Errorf("filters %q", got)
	}
}

func TestFilterRefusesAnIngressDiscipline(t *testing.T) {
	d := openWith(t, byFilters(t))
	tg := vethTarget(t, "v0")
	err := netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: tg.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Attach(newID(), tg); err == nil || !strings.Contains(err.Error(), "ingress qdisc") {
		t.Errorf("attached: %v", err)
	}
	if got := filtersOf(t, tg.Ifindex); len(got) != 0 {
		t.Errorf("filters %q", got)
	}
	if left := pinned(t, string(d.pins)); len(left) > 0 {
		t.Errorf("pins left: %v", left)
	}
}

// Filters of others stay where they are, and are none of ours.
func TestFilterLeavesOthersAlone(t *testing.T) {
	d := openWith(t, byFilters(t))
	tg := vethTarget(t, "v0")
	discipline(t, tg.Ifindex, "clsact", netlink.QdiscAdd)
	theirFilter(t, tg, filterPriority, passer(t))
	theirFilter(t, tg, 7, passer(t))
	id := newID()
	if err := d.Attach(id, tg); err != nil {
		t.Fatal(err)
	}
	name := filterName + " " + id
	want := []string{"ingress " + name, "ingress theirs", "ingress theirs", "egress " + name}
	if got := filtersOf(t, tg.Ifindex); strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("filters %q, want %q", got, want)
	}
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	if got := filtersOf(t, tg.Ifindex); strings.Join(got, ", ") != "ingress theirs, ingress theirs" {
		t.Errorf("filters after the detach: %q", got)
	}
}

// What is attached stays as it is, whatever the next daemon attaches by; and it ends without one.
func TestFilterIsAdoptedAsItIs(t *testing.T) {
	testenv.Require(t, testenv.TCX)
	cfg := byFilters(t)
	d, err := openRenewed(cfg)
	if err != nil {
		t.Fatal(err)
	}
	filtered, linked := vethTarget(t, "v0"), vethTarget(t, "v1")
	id := newID()
	if err := d.Attach(id, filtered); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = openRenewed(Config{Dir: cfg.Dir, InterfaceHook: HookTCX})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Attach(id, filtered); err != nil {
		t.Errorf("attach again: %v", err)
	}
	if err := d.Attach(newID(), linked); err != nil {
		t.Fatal(err)
	}
	if got := len(filtersOf(t, filtered.Ifindex)); got != 2 {
		t.Errorf("%d filters, want 2", got)
	}
	if got := len(filtersOf(t, linked.Ifindex)); got != 0 {
		t.Errorf("%d filters where there is tcx", got)
	}
	verdict(t, d, filtered, "a closed filter", udp4("192.0.2.1", 9), dropped)
	if got := d.Problems(); len(got) != 0 {
		t.Errorf("problems %q", got)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := RemoveAll(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if got := filtersOf(t, filtered.Ifindex); len(got) != 0 {
		t.Errorf("filters are left: %q", got)
	}
	if left, err := filepath.Glob(cfg.Dir + "*"); err != nil || len(left) > 0 {
		t.Errorf("pins are left: %v, %v", left, err)
	}
}

// A device that moves to another namespace leaves its filters behind, and is gone.
func TestFilterDoesNotMoveWithItsDevice(t *testing.T) {
	cfg := byFilters(t)
	d := openWith(t, cfg)
	tg := vethTarget(t, "v0")
	id := newID()
	if err := d.Attach(id, tg); err != nil {
		t.Fatal(err)
	}
	elsewhere := testenv.NewNS(t)
	ns, err := os.Open(elsewhere.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	moving, err := netlink.LinkByName(tg.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetNsFd(moving, int(ns.Fd())); err != nil {
		t.Fatal(err)
	}
	elsewhere.Do(func() {
		l, err := netlink.LinkByName(tg.Name)
		if err != nil {
			t.Fatal(err)
		}
		if got := filtersOf(t, l.Attrs().Index); len(got) != 0 {
			t.Errorf("filters moved: %q", got)
		}
	})
	var gone []string
	d.look(d.known[id], 0, func(id string, _ error) { gone = append(gone, id) })
	if len(gone) != 1 || gone[0] != id {
		t.Errorf("gone: %v", gone)
	}
	if err := d.Detach(id); err != nil {
		t.Error(err)
	}
}
