// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
)

// Where the kernel has no memory for one change, whichever it is, whoever wanted something hears of it and finds what was
// before, or has all of it; and afterwards it can be had, with nothing left over.
func TestNoMemoryForAnyStep(t *testing.T) {
	m := inMortalProcess(t)
	if m == nil {
		return
	}
	world := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	veth, err := target.ResolveInterface(world.Link, target.Ingress, "")
	if err != nil {
		t.Fatal(err)
	}
	cg := testenv.NewCgroup(t)
	cgroup, err := target.ResolveCgroup(cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	job := testenv.StartWorkload(t, world.Host, cg)
	for _, v := range []*victim{{target: veth}, {target: cgroup, from: job}} {
		v.dir, v.id = pinDir(t), newID()
		v.open(t)
		nothing := v.standing(t)
		for _, f := range fallibles {
			if f.only == 0 || f.only == v.target.Type {
				t.Logf("%s, %s: %d steps", v.target.Type, f.name, v.wantAtEach(t, m, f))
			}
		}
		v.out(t)
		if got := v.standing(t); !reflect.DeepEqual(got, nothing) {
			t.Errorf("%s: %+v in the end, want %+v", v.target.Type, got, nothing)
		}
		if err := errors.Join(v.d.Close(), RemoveAll(v.dir)); err != nil {
			t.Error(err)
		}
	}
}

// wantAtEach does f without memory for its first step, then for its second, until there is no such step.
func (v *victim) wantAtEach(t *testing.T, m *mortality, f fallible) (steps int) {
	t.Helper()
	f.begin(t, v)
	before := v.standing(t)
	if err := f.do(v); err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
	after := v.standing(t)
	for step := 1; ; step++ {
		where := fmt.Sprintf("%s, %s, step %d", v.target.Type, f.name, step)
		f.begin(t, v)
		if got := v.standing(t); !reflect.DeepEqual(got, before) {
			t.Fatalf("%s: %+v before, was %+v", where, got, before)
		}
		refused, err := m.without(step, func() error { return f.do(v) })
		if !refused {
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			return step - 1
		}
		if err != nil && !errors.Is(err, unix.ENOMEM) && !errors.Is(err, ErrFull) {
			t.Errorf("%s: %v", where, err)
		}
		want := after
		if err != nil {
			want = before
		}
		if err := v.d.sweepOnce(); err != nil { // which does what was left to it
			t.Fatal(err)
		}
		got := v.standing(t)
		if !reflect.DeepEqual(got, want) && (err == nil || f.fine == nil || !f.fine(got, before, after)) {
			t.Errorf("%s: %v, left\n%+v, want\n%+v", where, err, got, want)
		}
		if len(got.Pins) > 0 && f.name != "detach" { // one that failed half way may have opened already
			v.isClosed(t, where)
		}
		if err := f.do(v); err != nil {
			t.Fatalf("%s: again: %v", where, err)
		}
		if got := v.standing(t); !reflect.DeepEqual(got, after) {
			t.Errorf("%s: in the end\n%+v, want\n%+v", where, got, after)
		}
	}
}
