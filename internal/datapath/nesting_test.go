// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func chainOf(t *testing.T, d *Datapath, id string) (ids []string) {
	t.Helper()
	index, ok := d.Index(id)
	if !ok {
		t.Fatalf("attachment %s has no index", id)
	}
	for _, m := range d.Chain(index) {
		ids = append(ids, m.ID)
	}
	return ids
}

func TestChain(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	dir := pinDir(t)
	d := open(t, dir)
	outer := testenv.NewCgroup(t)
	middle := outer.Child(t, "middle")
	inner := middle.Child(t, "gap").Child(t, "inner")
	targets := map[string]target.Target{}
	attached := func(cg *testenv.Cgroup) string {
		tg, err := target.ResolveCgroup(cg.Path)
		if err != nil {
			t.Fatal(err)
		}
		id := attach(t, d, tg)
		targets[id] = tg
		return id
	}
	want := func(d *Datapath, id string, chain ...string) {
		t.Helper()
		if got := chainOf(t, d, id); !slices.Equal(got, chain) {
			t.Errorf("chain of %s: %v, want %v", filepath.Base(targets[id].Name), got, chain)
		}
	}
	i := attached(inner)
	want(d, i) // no policy yet
	replace(t, d, i, &policy.Policy{Mode: policy.ModeAllowlist})
	want(d, i, i)
	o := attached(outer)
	want(d, i) // what is around has none
	replace(t, d, o, &policy.Policy{Mode: policy.ModeAllowlist})
	want(d, i, i, o)
	m := attached(middle)
	replace(t, d, m, &policy.Policy{Mode: policy.ModeAllowlist})
	want(d, i, i, m, o)
	want(d, m, m, o)
	want(d, o, o)
	if err := d.Detach(m); err != nil {
		t.Fatal(err)
	}
	want(d, i, i, o)
	veth := attach(t, d, vethTarget(t, "v0"))
	replace(t, d, veth, &policy.Policy{Mode: policy.ModeAllowlist})
	want(d, veth, veth)

	// What is behind the interface is within it.
	link, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	index, _ := d.Index(i)
	d.Behind(index, []int{link.Attrs().NetNsID})
	want(d, i, i, o, veth)
	want(d, o, o)
	d.Behind(index, nil)
	want(d, i, i, o)

	// The next daemon does not know where a cgroup is before it is told.
	next := open(t, dir)
	replace(t, next, i, &policy.Policy{Mode: policy.ModeAllowlist})
	replace(t, next, o, &policy.Policy{Mode: policy.ModeAllowlist})
	want(next, i)
	if err := next.Attach(i, targets[i]); err != nil {
		t.Fatal(err)
	}
	want(next, i, i, o)
}
