// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"reflect"
	"sync"
	"testing"

	"github.com/netfence/netfence/policy"
)

func TestCensus(t *testing.T) {
	d := open(t, pinDir(t))
	one, other := vethTarget(t, "v0"), vethTarget(t, "v1")
	first, second := attach(t, d, one), attach(t, d, other)
	replace(t, d, first, packetPolicy())
	for range 3 {
		run(t, d.bpf.NfOutL2, one, udp4("192.0.2.1", 9))
	}
	run(t, d.bpf.NfOutL2, one, udp4("192.0.2.200", 9))
	run(t, d.bpf.NfOutL2, other, udp4("192.0.2.1", 9))
	census := func() Census {
		t.Helper()
		c, err := d.Census()
		if err != nil {
			t.Fatal(err)
		}
		for id, got := range c.Counters {
			if want, err := d.Counters(id); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("census has %+v, alone it is %+v, %v", got, want, err)
			}
		}
		return c
	}
	before := census()
	sum := before.Sum()
	if len(before.Counters) != 2 || sum.PacketsAllowed != 3 || sum.PacketsDropped != 2 ||
		!reflect.DeepEqual(sum.Drops, map[string]uint64{"deny-rule": 1, "block-all": 1}) {
		t.Errorf("%+v", before)
	}
	each := Census{Counters: map[string]Counters{}}
	if err := d.countEach(map[string]*attachment{first: d.known[first], second: d.known[second]}, &each); err != nil ||
		!reflect.DeepEqual(each.Counters, before.Counters) {
		t.Errorf("one by one: %+v, %v", each, err)
	}

	// Whoever has the index next begins at zero, and the sum stays.
	if err := d.Detach(first); err != nil {
		t.Fatal(err)
	}
	after := census()
	sum = after.Sum()
	sum.Add(after.Ended)
	if len(after.Counters) != 1 || !reflect.DeepEqual(sum, before.Sum()) {
		t.Errorf("sum %+v after an end, want %+v", sum, before.Sum())
	}
	again := attach(t, d, one)
	if c := census().Counters[again]; !reflect.DeepEqual(c, Counters{}) {
		t.Errorf("begins with %+v", c)
	}
}

// TestCensusNeverGoesBack counts while attachments come and go: a scraper takes
// a sum that becomes less for a restart.
func TestCensusNeverGoesBack(t *testing.T) {
	d := open(t, pinDir(t))
	tg, still := vethTarget(t, "v0"), attach(t, d, vethTarget(t, "v1"))
	const rounds, packets = 40, 5
	last := uint64(0)
	count := func() {
		c, err := d.Census()
		if err != nil {
			t.Error(err)
			return
		}
		if _, ok := c.Counters[still]; !ok {
			t.Error("one that stays is missing")
		}
		sum := c.Sum().PacketsAllowed + c.Ended.PacketsAllowed
		if sum < last {
			t.Errorf("%d packets after %d", sum, last)
		}
		last = sum
	}
	var counting sync.WaitGroup
	ended := make(chan struct{})
	counting.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
				count()
			}
		}
	})
	func() {
		defer counting.Wait()
		defer close(ended)
		for range rounds {
			id := attachOnly(t, d, tg)
			replace(t, d, id, &policy.Policy{Mode: policy.ModeDisabled})
			for range packets {
				run(t, d.bpf.NfOutL2, tg, udp4("192.0.2.1", 9))
			}
			if err := d.Detach(id); err != nil {
				t.Fatal(err)
			}
		}
	}()
	if count(); last != rounds*packets {
		t.Errorf("%d packets in the end, want %d", last, rounds*packets)
	}
}

// BenchmarkCensus reads the counters of 10,000 attachments that have dropped something.
func BenchmarkCensus(b *testing.B) {
	d := open(b, pinDir(b))
	known := make(map[string]*attachment, 10000)
	for i := range uint32(10000) {
		known[newID()] = &attachment{index: i + 1}
		for reason := range uint32(3) {
			if err := d.bpf.NfDrops.Put((i+1)*maxReasons+reason+1, uint64(7)); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		if _, err := d.count(known); err != nil {
			b.Fatal(err)
		}
	}
}
