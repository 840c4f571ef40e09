// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
)

// incidents are what a datapath has told of.
type incidents struct {
	mu   sync.Mutex
	told []events.Event
}

func (i *incidents) add(e events.Event) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if e.Incident != nil {
		i.told = append(i.told, e)
	}
}

func (i *incidents) take() (kinds []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, e := range i.told {
		kinds = append(kinds, e.Incident.Kind)
	}
	i.told = nil
	return kinds
}

// watched is a Datapath that is looked after until the test ends.
func watched(t *testing.T, cfg Config) (*Datapath, *incidents) {
	t.Helper()
	told := &incidents{}
	cfg.Events = told.add
	d := openWith(t, cfg)
	watch(t, d)
	return d, told
}

// watch has d look after its attachments until the test ends.
func watch(t *testing.T, d *Datapath) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.Watch(ctx, nil) }()
	t.Cleanup(func() { stop(); <-done })
}

// passer is a program that ends the chain with "let it pass", as one that redirects would.
func passer(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "passer", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, // TCX_PASS
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = closeBPF(p) })
	return p
}

// linked is cfg with links on interfaces, also where the tests are told to use filters.
func linked(t *testing.T, cfg Config) Config {
	t.Helper()
	testenv.Require(t, testenv.TCX)
	cfg.InterfaceHook = HookTCX
	return cfg
}

func atHead(t *testing.T, tg target.Target, p *ebpf.Program) link.Link {
	t.Helper()
	l, err := link.AttachTCX(link.TCXOptions{Interface: tg.Ifindex, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Whoever gets before our program is put behind it within seconds, and it is told of.
func TestOursComesFirst(t *testing.T) {
	d, told := watched(t, linked(t, Config{Dir: pinDir(t)}))
	f := newFlooded(t, d)
	tg, id, arrived, allowed, forbidden := f.tg, f.id, f.arrived, f.allowed, f.forbidden

	l := atHead(t, tg, passer(t))
	defer func() { _ = closeBPF(l) }()
	arrived.Await(t, 1, toPort(forbidden.to)) // theirs hides ours
	testenv.Eventually(t, "ours is the first again", func() bool {
		h := d.hooks(d.known[id].record)[0]
		return h.by.watch(h, d.pins.attached(id), d.known[id].record, tg.Ifindex) == nil
	})
	testenv.Eventually(t, "it is told of", func() bool { return len(told.take()) == 1 })
	first := testenv.Monotonic()
	arrived.Await(t, arrived.Sum(t, toPort(allowed.to)).Count+3000, toPort(allowed.to))
	sent := allowed.stop().Sent
	forbidden.stop()
	arrived.Await(t, sent, toPort(allowed.to))
	if last := arrived.Sum(t, toPort(forbidden.to)).LastSent; last > first {
		t.Errorf("a packet sent %s after ours was the first again passed", last-first)
	}
	if got := arrived.Sum(t, toPort(allowed.to)).Count; got != sent {
		t.Errorf("%d of %d allowed packets arrived", got, sent)
	}
}

// Taking the lead has no moment without a filter.
func TestTakingTheLeadHasNoGap(t *testing.T) {
	d := openWith(t, linked(t, Config{Dir: pinDir(t)}))
	f := newFlooded(t, d)
	tg, id := f.tg, f.id
	a := d.known[id]
	h := d.hooks(a.record)[0]
	for range 20 {
		if err := d.lead(h.by.(leader), h, a.record, id); err != nil {
			t.Fatal(err)
		}
		if err := h.by.verify(h, d.pins.attached(id), a.record, tg.Ifindex); err != nil {
			t.Fatal(err)
		}
	}
	f.noGap(t)
	if on, err := link.QueryPrograms(link.QueryOptions{Target: tg.Ifindex, Attach: h.attach}); err != nil || len(on.Programs) != 1 {
		t.Errorf("programs on the device: %+v, %v", on, err)
	}
}

// Two that both want to be the first do not fight for ever.
func TestTheFightForTheLeadEnds(t *testing.T) {
	told := &incidents{}
	d := openWith(t, linked(t, Config{Dir: pinDir(t), Events: told.add}))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	a, theirs := d.known[id], passer(t)
	for range leadLimit + 3 {
		l := atHead(t, tg, theirs)
		d.look(a, 0, nil)
		if err := errors.Join(l.(interface{ Detach() error }).Detach(), closeBPF(l)); err != nil {
			t.Fatal(err)
		}
	}
	if got := told.take(); len(got) != leadLimit {
		t.Errorf("took the lead %d times: %q", len(got), got)
	}
	l := atHead(t, tg, theirs)
	defer func() { _ = closeBPF(l) }()
	d.look(a, 0, nil)
	if got := d.Problems(); len(got) != 1 || !strings.Contains(got[0], "runs before") {
		t.Errorf("problems: %q", got)
	}
	if err := l.(interface{ Detach() error }).Detach(); err != nil {
		t.Fatal(err)
	}
	d.look(a, 0, nil)
	if got := d.Problems(); len(got) != 0 {
		t.Errorf("problems when it is over: %q", got)
	}
}

// What somebody detaches or unpins is put back within seconds, and told of.
func TestWhatWasTakenAwayIsPutBack(t *testing.T) {
	detach := func(t *testing.T, path string) {
		t.Helper()
		l, err := link.LoadPinnedLink(path, nil)
		if err == nil {
			err = errors.Join(l.(interface{ Detach() error }).Detach(), closeBPF(l))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	each := func(t *testing.T, dir string, do func(*testing.T, string)) {
		t.Helper()
		paths, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(paths) < 1 {
			t.Errorf("pins %v, %v", paths, err)
		}
		for _, path := range paths {
			do(t, path)
		}
	}
	remove := func(t *testing.T, path string) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	d, told := watched(t, linked(t, Config{Dir: pinDir(t)}))
	for kind, tg := range map[string]target.Target{"interface": vethTarget(t, "v0"), "cgroup": cgroupTarget(t)} {
		id := attach(t, d, tg)
		dir := d.pins.attached(id)
		leave := func() {
			if err := d.ours.leave(d.known[id].record); err != nil {
				t.Error(err)
			}
		}
		for what, take := range map[string]func(){
			"the verdict detached":        func() { detach(t, filepath.Join(dir, verdictHook)) },
			"the verdict unpinned":        func() { remove(t, filepath.Join(dir, verdictHook)) },
			"all detached":                func() { leave(); each(t, dir, detach) },
			"all unpinned":                func() { each(t, dir, remove) },
			"all unpinned, the directory": func() { each(t, dir, remove); remove(t, dir) },
		} {
			t.Run(kind+", "+what, func(t *testing.T) {
				a := d.lock(id)
				func() {
					defer a.mu.Unlock()
					take()
				}()
				testenv.Eventually(t, "it is told of", func() bool { return len(told.take()) == 1 })
				if gone, dead, err := lost(d.hooks(a.record), dir, a.record); err != nil || dead || len(gone) > 0 {
					t.Errorf("not put back: %v, %v", gone, err)
				}
				if got := owner(t, d, id); got != identity(a) {
					t.Errorf("the target belongs to %#x, want %#x", got, identity(a))
				}
			})
		}
	}
}

// An attachment whose target is gone ends, whether or not anybody but the kernel knows of it.
func TestWatchEndsWhatHasNoTarget(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	veth, cgroup, stays := vethTarget(t, "v0"), cgroupTarget(t), vethTarget(t, "v1")
	attachOnly(t, d, veth)
	attachOnly(t, d, cgroup)
	id := attachOnly(t, d, stays)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	deleteLink(t, veth.Name)
	if err := os.Remove(cgroup.Name); err != nil {
		t.Fatal(err)
	}
	d, _ = watched(t, Config{Dir: dir})
	t.Cleanup(func() {
		if err := d.Detach(id); err != nil {
			t.Error(err)
		}
	})
	testenv.Eventually(t, "one is left", func() bool {
		left := d.Attachments()
		return len(left) == 1 && left[0].ID == id
	})
	if left := pinned(t, dir); len(left) != 2 {
		t.Errorf("pins: %v", left)
	}
}

func BenchmarkWatch(b *testing.B) {
	d := open(b, pinDir(b))
	for name, tg := range map[string]target.Target{"interface": vethTarget(b, "v0"), "cgroup": cgroupTarget(b)} {
		a := d.known[attach(b, d, tg)]
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				d.look(a, i, nil)
			}
		})
	}
}
