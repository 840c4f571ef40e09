// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"testing"
	"time"

	"github.com/netfence/netfence/policy"
)

// TestLearnedAlready holds that what the kernel holds is not written again, and
// that everything else is: what it does not hold, not for long enough, for other
// ports, or no more.
func TestLearnedAlready(t *testing.T) {
	d := open(t, pinDir(t))
	https := ports(443, 443, policy.TCP)
	id := attach(t, d, vethTarget(t, "v0"))
	replace(t, d, id, domains(domain("a.example"), domain("b.example", https)))
	a := d.known[id]
	lessons := func() uint64 {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.lessons
	}
	for _, step := range []struct {
		what    string
		name    string
		ttl     time.Duration
		addrs   []string
		written bool
	}{
		{"first", "a.example", time.Minute, []string{"192.0.2.1", "192.0.2.2"}, true},
		{"again", "a.example", time.Minute, []string{"192.0.2.1", "192.0.2.2"}, false},
		{"one of them, mapped", "a.example", time.Minute, []string{"::ffff:192.0.2.2"}, false},
		{"for less", "a.example", time.Second, []string{"192.0.2.1"}, false},
		{"for longer", "a.example", time.Hour, []string{"192.0.2.1"}, true},
		{"for longer, again", "a.example", time.Hour, []string{"192.0.2.1"}, false},
		{"the other has not", "a.example", time.Hour, []string{"192.0.2.1", "192.0.2.2"}, true},
		{"another address", "a.example", time.Minute, []string{"192.0.2.3"}, true},
		{"another name", "b.example", time.Minute, []string{"192.0.2.1"}, true},
		{"another name again", "b.example", time.Minute, []string{"192.0.2.1"}, false},
		{"nothing", "a.example", time.Minute, nil, false},
	} {
		// A minute must not pass between a step and the one before.
		a.memory.mu.Lock()
		for id, n := range a.memory.names {
			n.learned += time.Hour
			a.memory.names[id] = n
		}
		a.memory.mu.Unlock()
		before := lessons()
		learn(t, d, id, step.name, step.ttl, step.addrs...)
		if written := lessons() != before; written != step.written {
			t.Errorf("%s: written %v", step.what, written)
		}
	}

	// A minute later the name is refreshed, for the limit of its flows.
	a.memory.mu.Lock()
	for id, n := range a.memory.names {
		n.learned = 1
		a.memory.names[id] = n
	}
	a.memory.mu.Unlock()
	before := lessons()
	learn(t, d, id, "a.example", time.Minute, "192.0.2.1")
	if lessons() == before {
		t.Error("not refreshed")
	}

	// What was decided before a change of the policy is decided anew, and what a
	// change has cut is learned anew.
	old := lesson(t, d, id, "a.example", time.Minute, "192.0.2.1")
	replace(t, d, id, domains(domain("b.example", https)))
	if err := d.Learn([]Lesson{old}, true); !errors.Is(err, ErrStale) {
		t.Errorf("after a cut: %v", err)
	}
	replace(t, d, id, domains(domain("a.example")))
	before = lessons()
	learn(t, d, id, "a.example", time.Minute, "192.0.2.1")
	if lessons() == before {
		t.Error("what was cut is taken for held")
	}
}

// TestLearnBusy holds that who does not want to wait for a change of policy is told so, and has taught nothing.
func TestLearnBusy(t *testing.T) {
	d := open(t, pinDir(t))
	inner, outer := attach(t, d, vethTarget(t, "v0")), attach(t, d, vethTarget(t, "v1"))
	for _, id := range []string{inner, outer} {
		replace(t, d, id, domains(domain("a.example")))
	}
	lessons := []Lesson{
		lesson(t, d, inner, "a.example", time.Minute, "192.0.2.1"),
		lesson(t, d, outer, "a.example", time.Minute, "192.0.2.1"),
	}
	a := d.known[outer]
	a.mu.Lock()
	err := d.Learn(lessons, false)
	a.mu.Unlock()
	if !errors.Is(err, ErrBusy) || d.known[inner].memory.names != nil {
		t.Fatalf("%v, learned %v", err, d.known[inner].memory.names)
	}
	if err := d.Learn(lessons, false); err != nil || len(d.known[inner].memory.addrs) != 1 {
		t.Errorf("%v, learned %v", err, d.known[inner].memory.addrs)
	}
}
