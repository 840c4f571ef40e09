// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// TestRenewedBeforeAnythingElse holds that who does not wait for all programs to be replaced
// still finds this daemon's, all of them and no other, wherever he has asked for something.
func TestRenewedBeforeAnythingElse(t *testing.T) {
	dir := pinDir(t)
	d := open(t, dir)
	steps := []string{"attach", "attach without pins", "replace", "watch", "neither"}
	targets, ids := map[string]target.Target{}, map[string]string{}
	for _, step := range steps {
		targets[step] = cgroupTarget(t)
		ids[step] = attachOnly(t, d, targets[step])
		replace(t, d, ids[step], &policy.Policy{Mode: policy.ModeAllowlist})
	}
	open(t, dir) // puts its own there
	theirs := map[string][]ebpf.ProgramID{}
	for _, step := range steps {
		a := d.known[ids[step]]
		a.earlier = true
		theirs[step] = programsOn(t, targets[step])
		if len(theirs[step]) != len(d.hooks(a.record)) {
			t.Fatalf("%s: programs %v", step, theirs[step])
		}
	}
	if err := os.RemoveAll(d.pins.attached(ids["attach without pins"])); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"attach", "attach without pins"} {
		if err := d.Attach(ids[step], targets[step]); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	replace(t, d, ids["replace"], &policy.Policy{Mode: policy.ModeDisabled})
	d.look(d.known[ids["watch"]], 0, nil)
	for _, step := range steps {
		var now []ebpf.ProgramID
		testenv.Eventually(t, step+": as many programs as before", func() bool { // the kernel ends a link without a pin a little later
			now = programsOn(t, targets[step])
			return len(now) == len(theirs[step])
		})
		mixed := slices.ContainsFunc(now, func(p ebpf.ProgramID) bool { return slices.Contains(theirs[step], p) })
		if renewed := step != "neither"; mixed == renewed || d.known[ids[step]].earlier == renewed {
			t.Errorf("%s: programs %v, were %v", step, now, theirs[step])
		}
	}
}

// TestNotRenewed holds that it is told of for as long as an attachment has an earlier daemon's programs, and no longer
// than the attachment is there.
func TestNotRenewed(t *testing.T) {
	d := open(t, pinDir(t))
	var ids []string
	for range 2 {
		id := attachOnly(t, d, cgroupTarget(t))
		d.known[id].earlier = true
		ids = append(ids, id)
	}
	verdict := d.bpf.NfCgEgress
	d.bpf.NfCgEgress = nil // there is nothing to put in place
	for _, id := range ids {
		d.look(d.known[id], 0, nil)
	}
	d.bpf.NfCgEgress = verdict
	if told := d.Problems(); len(told) != 2 || !strings.Contains(told[0], "programs of an earlier daemon go on") {
		t.Fatalf("told %q", told)
	}
	if d.look(d.known[ids[0]], 0, nil); d.known[ids[0]].earlier || len(d.Problems()) != 1 {
		t.Errorf("renewed, told %q", d.Problems())
	}
	if err := d.Detach(ids[1]); err != nil || len(d.Problems()) != 0 {
		t.Errorf("detached, told %q: %v", d.Problems(), err)
	}
}
