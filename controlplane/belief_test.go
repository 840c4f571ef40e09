// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
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
		case 3:
			for id := range metadata {
				metadata[id] = names[random.IntN(len(names))]
				d.SetMetadata(id, named(metadata[id]))
				labelled(t, plane, id, named(metadata[id]))
				break
			}
		}
		// One that waited for its first policy when the stream ended is told of by itself.
		eventually(t, "all are known", func() bool { return connected(t, plane, "d", true).Attachments == len(metadata) })
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

// labelled waits until the control plane has heard of an attachment's metadata.
func labelled(t *testing.T, plane *controlplane.ControlPlane, id string, metadata map[string]string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has %v", id, metadata), func() bool {
		for a := range plane.Attachments(controlplane.Selector{ID: id}) {
			if reflect.DeepEqual(a.Metadata, metadata) {
				return true
			}
		}
		return false
	})
}

// Metadata that changes have the policy decided anew; nothing else about the attachment is, and it is not a new one.
func TestMetadataChanges(t *testing.T) {
	for _, published := range []bool{false, true} {
		t.Run(fmt.Sprint("published ", published), func(t *testing.T) {
			var by decisions
			by.set("a", allow("10.1.0.0/16"))
			by.set("b", allow("10.2.0.0/16"))
			attached := make(chan string, 10)
			plane, server := serve(t, controlplane.Options{
				Policy: by.policy, OnAttach: func(a controlplane.Attachment) { attached <- a.ID },
			})
			d := server.Connect(t, controlplanetest.Config{ID: "d", Published: published})
			id := d.Attach(t, "/x", named("a"))
			d.SetMetadata(id, named("b"))
			d.WaitPolicy(t, id, allows("10.2.0.0/16"))
			more := map[string]string{"p": "b", "more": "1"} // which decides the same
			d.SetMetadata(id, more)
			labelled(t, plane, id, more)
			wait(t, plane, plane.Refresh(controlplane.Selector{ID: id}))
			if n := len(attached); n != 1 {
				t.Errorf("OnAttach was called %d times", n)
			}
			if got := d.Commands(); !published && got["bulk_update"] != 1 {
				t.Errorf("sent %v", got)
			}
		})
	}
}

// What is said of an attachment while a command is on its way to it does not undo the command: the answer is to come.
func TestMetadataCross(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	plane, server := serve(t, controlplane.Options{Policy: by.policy})
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := netfencev1.NewControlPlaneClient(server.Dial(t)).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got unanswered
	var reading sync.WaitGroup
	reading.Go(func() { got.read(stream) })
	defer reading.Wait()
	defer cancel()
	say := func(text string) {
		t.Helper()
		if err := stream.Send(event(t, text)); err != nil {
			t.Fatal(err)
		}
	}
	say(`sync { daemon_id: "d" hello { features: "results" } attachments { id: "1" metadata { key: "p" value: "a" } } }`)
	var commands []*netfencev1.ControlCommand
	eventually(t, "the first command", func() bool {
		commands, _ = got.take()
		return len(commands) > 0
	})
	say(`subscribed { id: "1" metadata { key: "p" value: "a" } metadata { key: "more" value: "1" } applied {} }`)
	labelled(t, plane, "1", map[string]string{"p": "a", "more": "1"})
	say(fmt.Sprintf(`result { number: %d id: "1" code: COMMAND_CODE_APPLIED revision: "%s" }`, commands[0].GetNumber(), commands[0].GetRevision()))
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Applied != 1 {
		t.Errorf("outcome %+v", outcome)
	}
	if again, _ := got.take(); len(commands) != 1 || len(again) != 0 {
		t.Errorf("sent %d commands, and %d more", len(commands), len(again))
	}
}
