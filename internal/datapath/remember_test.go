// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/policy"
)

// holds is all that an attachment has learned, to compare: deadlines, names, ports.
func (m *memory) holds() string {
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(m.names)) {
		fmt.Fprintf(&b, "%d %+v\n", id, m.names[id])
	}
	for _, addr := range slices.SortedFunc(maps.Keys(m.addrs), netip.Addr.Compare) {
		fmt.Fprintf(&b, "%s %+v\n", addr, m.addrs[addr])
	}
	return b.String()
}

func TestOpenAdoptsWhatWasLearned(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	tg := vethTarget(t, "v0")
	id := attachOnly(t, d, tg)
	p := domains(domain("*.example"), domain("web.test", ports(443, 443, policy.TCP), ports(80, 81, 0)))
	replace(t, d, id, p)
	for i := range 30 {
		learn(t, d, id, fmt.Sprintf("n%d.example", i), time.Hour, server, fmt.Sprintf("2001:db8::%d", i+1))
	}
	learn(t, d, id, "web.test", time.Hour, server, "203.0.113.2")
	ack := toServer(protoTCP, tcp(4000, 443, flagACK))
	verdict(t, d, tg, "before", ack, passed)
	want, last := d.known[id].memory.holds(), d.known[id].memory.last
	stranger := bpfNameKey{Incarnation: 999, Id: 1}
	if err := d.bpf.NfNames.Put(&stranger, kernelName(999, 1, knownName{})); err != nil {
		t.Fatal(err)
	}
	foreign := bpfLearnedKey{Incarnation: 999}
	if err := d.bpf.NfLearned.Put(&foreign, kernelChunk(foreign, [grantsPerChunk]grant{{deadline: 1 << 62, name: 1}})); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = open(t, dir)
	a := d.known[id]
	if got := a.memory.holds(); got != want || a.memory.last != last {
		t.Errorf("adopted %s, last %d; want %s, %d", got, a.memory.last, want, last)
	}
	if names, grants := lessonsOf(t, d, 999); names+grants != 0 {
		t.Errorf("%d names and %d grants of nobody", names, grants)
	}
	verdict(t, d, tg, "adopted", ack, passed)
	replace(t, d, id, p)
	if got := a.memory.holds(); got != want {
		t.Errorf("the same policy changed %s into %s", want, got)
	}
	learn(t, d, id, "fresh.example", time.Hour, server)
	verdict(t, d, tg, "adopted, and learned more", ack, passed)
	if err := d.Detach(id); err != nil {
		t.Error(err)
	}
}

// agrees compares the memory with what the kernel holds, and looks for grants without a name.
func agrees(t *testing.T, d *Datapath, a *attachment) {
	t.Helper()
	c := new(memory).change(a.record.Incarnation)
	err := eachEntry(d.bpf.NfNames, func(key *bpfNameKey, k *bpfName) error {
		if key.Incarnation == a.record.Incarnation {
			c.names[key.Id] = nameFromKernel(k)
		}
		return nil
	})
	err = errors.Join(err, eachEntry(d.bpf.NfLearned, func(key *bpfLearnedKey, chunk *bpfLearned) error {
		if key.Incarnation == a.record.Incarnation {
			c.place(key, chunk)
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	c.commit(new(room))
	if got, want := a.memory.holds(), c.memory.holds(); got != want {
		t.Errorf("remembered %s, the kernel holds %s", got, want)
	}
	for addr, gs := range a.memory.addrs {
		for _, g := range gs {
			if _, ok := a.memory.names[g.name]; !ok && g != (grant{}) {
				t.Errorf("%s: %+v without a name", addr, g)
			}
		}
	}
}

var plenty = learningLimits{addrs: 100, names: 100, freeNames: 100, freeChunks: 100, grace: time.Second}

// A crash after any write of Learn or Replace leaves what Open makes sense of:
// memory and kernel agree, every grant has its name, and what the policy in force
// granted goes on until another is.
func TestOpenAfterACrashInBetween(t *testing.T) {
	base, next := domains(domain("a.example"), domain("b.example")), domains(domain("b.example"), domain("c.example"))
	const of, shared = server, "203.0.113.2" // a.example's, and both names'
	for name, steps := range map[string]func(t *testing.T, d *Datapath, a *attachment, id string) (do []func() error, flip int){
		"learn": func(t *testing.T, d *Datapath, a *attachment, id string) (do []func() error, flip int) {
			c := a.memory.change(a.record.Incarnation)
			for _, l := range []Lesson{
				lesson(t, d, id, "b.example", 2*time.Hour, "203.0.113.3", shared),
				lesson(t, d, id, "a.example", 2*time.Hour, of, "203.0.113.4"),
			} {
				if err := c.teach(l, bootTime(t), plenty); err != nil {
					t.Fatal(err)
				}
			}
			for _, e := range c.edits(&d.bpf.bpfMaps) {
				do = append(do, e.do)
			}
			return do, len(do) + 1
		},
		"replace": func(t *testing.T, d *Datapath, a *attachment, _ string) (do []func() error, flip int) {
			for _, e := range a.recut(compile(t, next).Names).edits(&d.bpf.bpfMaps) {
				do = append(do, e.do)
			}
			do = append(do, func() error { return d.put(a, a.word&wordPolicyMask) })
			flip = len(do)
			purged := a.memory.change(a.record.Incarnation)
			for id, n := range a.memory.names {
				if n.text == "a.example" {
					purged.forget([]uint32{id}, func(grant) bool { return false })
				}
			}
			for _, e := range purged.edits(&d.bpf.bpfMaps) {
				do = append(do, e.do)
			}
			return do, flip
		},
	} {
		for n, total := 0, 1; n <= total; n++ {
			for _, then := range []*policy.Policy{base, next} {
				if name == "learn" && then == next {
					continue // nothing was prepared that it could undo
				}
				t.Run(fmt.Sprintf("%s, %d steps, then %v", name, n, then.DNS.Allow[0].Domain), func(t *testing.T) {
					dir := pinDir(t)
					d, err := openRenewed(Config{Dir: dir})
					if err != nil {
						t.Fatal(err)
					}
					tg := vethTarget(t, "v0")
					id := attachOnly(t, d, tg)
					replace(t, d, id, base)
					learn(t, d, id, "a.example", time.Hour, of, shared)
					learn(t, d, id, "b.example", time.Hour, shared)
					ack := toServer(protoTCP, tcp(4000, 443, flagACK))
					verdict(t, d, tg, "before", ack, passed)
					do, flip := steps(t, d, d.known[id], id)
					total = len(do)
					for _, step := range do[:n] {
						if err := step(); err != nil {
							t.Fatal(err)
						}
					}
					granted := uint32(passed)
					if n >= flip {
						granted = dropped
					}
					verdict(t, d, tg, "stopped", tcp4(of, 80), granted)
					verdict(t, d, tg, "stopped, flow", ack, granted)
					verdict(t, d, tg, "stopped, shared", tcp4(shared, 80), passed)
					if err := d.Close(); err != nil {
						t.Fatal(err)
					}

					d = open(t, dir)
					a := d.known[id]
					agrees(t, d, a)
					verdict(t, d, tg, "adopted", tcp4(of, 80), granted)
					verdict(t, d, tg, "adopted, flow", ack, granted)
					verdict(t, d, tg, "adopted, shared", tcp4(shared, 80), passed)
					replace(t, d, id, then)
					agrees(t, d, a)
					if then == next {
						granted = dropped
					}
					verdict(t, d, tg, "replaced", tcp4(of, 80), granted)
					verdict(t, d, tg, "replaced, flow", ack, granted)
					verdict(t, d, tg, "replaced, shared", tcp4(shared, 80), passed)
					if err := d.Detach(id); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// Without room for all of it the kernel keeps nothing.
func TestLearnUndoesWhatItCouldNotFinish(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, domains(domain("a.example"), domain("b.example")))
	learn(t, d, id, "a.example", time.Minute, server)
	a := d.known[id]
	c := a.memory.change(a.record.Incarnation)
	if err := c.teach(lesson(t, d, id, "b.example", time.Hour, server, "203.0.113.2"), bootTime(t), plenty); err != nil {
		t.Fatal(err)
	}
	closed, err := d.bpf.NfNames.Clone()
	if err := errors.Join(err, closeBPF(closed)); err != nil {
		t.Fatal(err)
	}
	failing := edit{m: closed, key: memoryOf(&bpfNameKey{}), after: memoryOf(&bpfName{})}
	if err := apply(append(c.edits(&d.bpf.bpfMaps), failing)); err == nil {
		t.Fatal("wrote to a closed map")
	}
	agrees(t, d, a)
	verdict(t, d, tg, "learned before", udp4(server, 9), passed)
	verdict(t, d, tg, "undone", udp4("203.0.113.2", 9), dropped)
}
