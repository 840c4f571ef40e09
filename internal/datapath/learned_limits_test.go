// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/netfence/netfence/policy"
)

func TestLearnRespectsLimits(t *testing.T) {
	d := openWith(t, Config{Dir: pinDir(t), MaxLearned: 3, MaxNames: 2})
	one, two := vethTarget(t, "v0"), vethTarget(t, "v1")
	id, other := attach(t, d, one), attach(t, d, two)
	replace(t, d, id, domains(domain("*.example")))
	replace(t, d, other, domains(domain("*.example")))
	learn(t, d, id, "a.example", time.Minute, "203.0.113.1", "203.0.113.2")
	a := d.known[id]
	refused := func(what, limit string, lessons ...Lesson) {
		t.Helper()
		names, grants := lessonsOf(t, d, a.record.Incarnation)
		err := d.Learn(lessons, true)
		var at *LimitError
		if !errors.Is(err, ErrFull) || !errors.As(err, &at) || at.Limit != limit {
			t.Errorf("%s: %v, want the limit %s", what, err, limit)
		}
		if n, g := lessonsOf(t, d, a.record.Incarnation); n != names || g != grants {
			t.Errorf("%s: %d names and %d grants, before %d and %d", what, n, g, names, grants)
		}
		if n, g := lessonsOf(t, d, d.known[other].record.Incarnation); n+g != 0 {
			t.Errorf("%s: the other attachment learned %d names and %d grants", what, n, g)
		}
	}
	refused("two addresses more", "learned", lesson(t, d, other, "b.example", time.Minute, "203.0.113.9"), lesson(t, d, id, "b.example", time.Minute, "203.0.113.3", "203.0.113.4"))
	verdict(t, d, one, "the first of two", udp4("203.0.113.3", 9), dropped)
	refused("two names more", "names", lesson(t, d, id, "b.example", time.Minute, "203.0.113.3"), lesson(t, d, id, "c.example", time.Minute, "203.0.113.1"))
	learn(t, d, id, "b.example", time.Minute, "203.0.113.3", "203.0.113.1")
	refused("full of addresses", "learned", lesson(t, d, id, "b.example", time.Minute, "203.0.113.4"))
	refused("full of names", "names", lesson(t, d, id, "c.example", time.Minute, "203.0.113.1"))
	learn(t, d, id, "a.example", time.Hour, "203.0.113.2") // extending needs no room
	if err := d.Learn([]Lesson{lesson(t, d, other, "b.example", time.Minute, "203.0.113.1")}, true); err != nil {
		t.Errorf("another attachment: %v", err)
	}

	expireGrants(t, d)
	a.roomed = 0
	expireNames(a)
	learn(t, d, id, "c.example", time.Minute, "203.0.113.4") // what is over makes room
	if names, grants := lessonsOf(t, d, a.record.Incarnation); names != 1 || grants != 1 {
		t.Errorf("%d names and %d grants, want what was just learned", names, grants)
	}
}

// However little the maps of all are, who has less than what is left gets it.
func TestAttachmentsShareTheMaps(t *testing.T) {
	d := open(t, pinDir(t))
	ids := []string{attach(t, d, vethTarget(t, "v0")), attach(t, d, vethTarget(t, "v1")), attach(t, d, vethTarget(t, "v2"))}
	for _, id := range ids {
		replace(t, d, id, domains(domain("*.example")))
	}
	const few = 64
	d.room.names.Store(int64(d.bpf.NfNames.MaxEntries()) - few)
	taught := make([]int, len(ids))
	for i, id := range ids {
		for {
			err := d.Learn([]Lesson{lesson(t, d, id, fmt.Sprintf("n%d.example", taught[i]), time.Minute, server)}, true)
			if err != nil {
				if !errors.Is(err, ErrFull) || errors.As(err, new(*LimitError)) {
					t.Errorf("attachment %d: %v", i, err)
				}
				break
			}
			taught[i]++
		}
	}
	if want := []int{32, 16, 8}; !slices.Equal(taught, want) {
		t.Errorf("%v names, want %v", taught, want)
	}
	for _, id := range ids {
		replace(t, d, id, policy.BlockAll())
	}
	if left := int(d.bpf.NfNames.MaxEntries()) - int(d.room.names.Load()); left != few || d.room.chunks.Load() != 0 {
		t.Errorf("%d names are free, want %d; %d chunks in use", left, few, d.room.chunks.Load())
	}
}

// Many names on few addresses take many chunks: these are what all share.
func TestAttachmentsShareTheChunks(t *testing.T) {
	d := open(t, pinDir(t))
	greedy, modest := attach(t, d, vethTarget(t, "v0")), attach(t, d, vethTarget(t, "v1"))
	for _, id := range []string{greedy, modest} {
		replace(t, d, id, domains(domain("*.example")))
	}
	const few = 32
	d.room.chunks.Store(int64(d.bpf.NfLearned.MaxEntries()) - few)
	taught := 0
	for err := error(nil); err == nil && taught < maxGrants; taught++ {
		err = d.Learn([]Lesson{lesson(t, d, greedy, fmt.Sprintf("n%d.example", taught), time.Minute, server)}, true)
		if err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	if left := int(d.bpf.NfLearned.MaxEntries()) - int(d.room.chunks.Load()); left != few/2 {
		t.Errorf("one address with %d names leaves %d chunks of %d to all others, want %d", taught, left, few, few/2)
	}
	learn(t, d, modest, "x.example", time.Minute, server)
	for _, id := range []string{greedy, modest} {
		replace(t, d, id, policy.BlockAll())
	}
	if left := int(d.bpf.NfLearned.MaxEntries()) - int(d.room.chunks.Load()); left != few || d.known[greedy].memory.chunks != 0 {
		t.Errorf("%d chunks are free, want %d; %d are counted for who has none", left, few, d.known[greedy].memory.chunks)
	}
}

// expireNames forgets when names were learned, where the kernel does not look.
func expireNames(a *attachment) {
	for id, n := range a.memory.names {
		n.learned = 1
		a.memory.names[id] = n
	}
}

func TestManyNamesShareAnAddress(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, domains(domain("*.example", ports(1000, 1000, 0)), domain("last.test", ports(80, 80, 0))))
	name := func(i int) string { return string(rune('a'+i/26)) + string(rune('a'+i%26)) + ".example" }
	for i := range maxGrants - 1 {
		learn(t, d, id, name(i), time.Minute, "203.0.113.1")
	}
	verdict(t, d, tg, "port of none yet", tcp4("203.0.113.1", 80), dropped)
	learn(t, d, id, "last.test", time.Minute, "203.0.113.1")
	verdict(t, d, tg, "in the last place", tcp4("203.0.113.1", 80), passed)
	before, grants := lessonsOf(t, d, d.known[id].record.Incarnation)
	if err := d.Learn([]Lesson{lesson(t, d, id, name(maxGrants), time.Minute, "203.0.113.1")}, true); !errors.Is(err, ErrFull) {
		t.Errorf("one name too many: %v", err)
	}
	if n, g := lessonsOf(t, d, d.known[id].record.Incarnation); n != before || g != grants {
		t.Errorf("%d names and %d grants, before %d and %d", n, g, before, grants)
	}
	replace(t, d, id, domains(domain("last.test", ports(80, 80, 0))))
	verdict(t, d, tg, "the others were cut", tcp4("203.0.113.1", 80), passed)
	if n, g := lessonsOf(t, d, d.known[id].record.Incarnation); n != 1 || g != 1 {
		t.Errorf("%d names and %d grants are left", n, g)
	}
}
