// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

// What the control plane believes is what the daemon has, whatever changes, is refused, moves between policies, comes, goes
// or reconnects: applied means in force, and what is in force where a decision was refused was decided for it before.
func TestBeliefIsTrue(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			believe(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

func believe(t *testing.T, random *rand.Rand) {
	var by decisions
	names := []string{"a", "b", "c"}
	prefix := func() string { return fmt.Sprintf("10.%d.0.0/16", random.IntN(4)) }
	change := func() { by.set(names[random.IntN(len(names))], allow(prefix())) }
	for _, name := range names {
		by.set(name, allow(prefix()))
	}
	gone := make(chan string, 1)
	plane, server := serve(t, controlplane.Options{
		Policy: by.policy, OnRefused: func(controlplane.Attachment, controlplane.Refusal) {}, QueueBytes: 1 + random.IntN(20_000),
		OnDetach: func(a controlplane.Attachment, _ controlplane.Detached) { gone <- a.ID },
	})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	metadata := make(map[string]string) // the name, by attachment
	attach := func() {
		name := names[random.IntN(len(names))]
		id := d.Attach(t, "/x", named(name))
		metadata[id] = name
	}
	for range 6 {
		attach()
	}
	for step := range 60 {
		d.Refuse(nil)
		switch random.IntN(8) {
		case 0:
			attach()
		case 1:
			for id := range metadata {
				if len(metadata) > 2 {
					d.Detach(id)
					delete(metadata, id)
					if got := <-gone; got != id {
						t.Fatalf("detached %s, want %s", got, id)
					}
				}
				break
			}
		case 2:
			if err := d.Reconnect(); err != nil {
				t.Fatal(err)
			}
		}
		if random.IntN(3) == 0 {
			refuse := prefix()
			only := random.IntN(2) == 0
			d.Refuse(func(id string, p *policy.Policy) error {
				if allows(refuse)(p) && (!only || strings.HasSuffix(id, "1")) {
					return errors.New("no room")
				}
				return nil
			})
		}
		before, tried := make(map[string]*policy.Policy), make(map[string][]*policy.Policy)
		for id, name := range metadata {
			before[id] = d.Policy(id)
			tried[id] = append(tried[id], by.by[name])
		}
		for range random.IntN(4) { // the last counts
			change()
			for id, name := range metadata {
				tried[id] = append(tried[id], by.by[name])
			}
			plane.Refresh(controlplane.Selector{})
		}
		outcome := wait(t, plane, plane.Refresh(controlplane.Selector{}))
		for connected(t, plane, "d", true).Waiting > 0 { // one that was told of meanwhile
			outcome = wait(t, plane, plane.Refresh(controlplane.Selector{}))
		}
		seen := 0
		for a := range plane.Attachments(controlplane.Selector{}) {
			seen++
			got := d.Policy(a.ID)
			by.mu.Lock()
			want := by.by[metadata[a.ID]]
			by.mu.Unlock()
			switch a.Status {
			case controlplane.Applied:
				if !reflect.DeepEqual(got.Allow, want.Allow) {
					t.Fatalf("step %d: %s is believed to have %v, has %v", step, a.ID, want.Allow, got.Allow)
				}
			case controlplane.Refused:
				if !reflect.DeepEqual(got.Allow, before[a.ID].Allow) && !slices.ContainsFunc(tried[a.ID], func(p *policy.Policy) bool { return reflect.DeepEqual(p.Allow, got.Allow) }) {
					t.Fatalf("step %d: %s refused %v, and has %v which was never decided for it", step, a.ID, want.Allow, got.Allow)
				}
			default:
				t.Fatalf("step %d: %s is %v, %+v", step, a.ID, a.Status, outcome)
			}
		}
		if seen != len(metadata) {
			t.Fatalf("step %d: %d attachments, want %d", step, seen, len(metadata))
		}
	}
}
