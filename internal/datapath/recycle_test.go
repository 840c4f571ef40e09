// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// recycler attaches, replaces and detaches one target over and over. Its addresses
// are its own but for one that some of its policies share with everybody's.
type recycler struct {
	d      *Datapath
	target target.Target
	number byte
	passes func(dst string) (bool, error)

	judged, full int
}

const sharedAddr = "198.18.255.1"

func (r *recycler) addr(i int) string { return fmt.Sprintf("198.18.%d.%d", r.number, i+1) }

// turn is one life of an attachment, with a few policies.
func (r *recycler) turn(t *testing.T, rng *rand.Rand, foreign []string) error {
	id := newID()
	if err := r.d.Attach(id, r.target); errors.Is(err, ErrFull) {
		r.full++
		return nil
	} else if err != nil {
		return err
	}
	allowed := map[string]bool{}
	for range 4 {
		if err := r.check(allowed, foreign[rng.IntN(len(foreign))]); err != nil {
			return err
		}
		next := map[string]bool{}
		p := &policy.Policy{Mode: policy.ModeAllowlist}
		for i := range 3 {
			if rng.IntN(2) == 0 {
				next[r.addr(i)] = true
				p.Allow = append(p.Allow, rule(r.addr(i)+"/32"))
			}
		}
		if rng.IntN(3) == 0 { // the same table as others'
			next = map[string]bool{sharedAddr: true}
			p.Allow = []policy.Rule{rule(sharedAddr + "/32")}
		}
		c, err := p.Settle(nil, 0, time.Now()).Compile()
		if err != nil {
			return err
		}
		switch err := r.d.Replace(id, c); {
		case errors.Is(err, ErrFull):
			r.full++ // and what was in force still is
		case err != nil:
			return err
		default:
			allowed = next
		}
	}
	if err := r.check(allowed, foreign[rng.IntN(len(foreign))]); err != nil {
		return err
	}
	return r.d.Detach(id)
}

// check compares what passes with what is allowed, and with what others are.
func (r *recycler) check(allowed map[string]bool, foreign string) error {
	for _, dst := range []string{r.addr(0), r.addr(1), r.addr(2), sharedAddr, foreign} {
		got, err := r.passes(dst)
		if err != nil {
			return err
		}
		if got != allowed[dst] {
			return fmt.Errorf("%s passes: %v, want %v", dst, got, allowed[dst])
		}
		r.judged++
	}
	return nil
}

// TestRecycledPlacesMixNothing has more targets than there are places for
// attachments and tables: indices and slots are used again all the time, by
// others, while packets are judged. Each verdict is that of the packet's own
// attachment, and of the policy that it has; a place that cannot be had changes
// nothing.
func TestRecycledPlacesMixNothing(t *testing.T) {
	turns := 15
	if os.Getenv("NETFENCE_SOAK") != "" {
		turns = 2000
	}
	d := openWith(t, Config{Dir: pinDir(t), MaxAttachments: 6})
	spares(t, d)
	d.slots.mu.Lock()
	d.slots.free = d.slots.free[:2] // and six spares
	d.slots.mu.Unlock()

	ns, outside := testenv.NewNS(t), testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: ns, Name: "d0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.1/24")}},
		testenv.End{NS: outside, Name: "d0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.2/24")}})
	ns.Route(t, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.5.0.2"), "d0")

	var all []*recycler
	for i := range 4 {
		tg := vethTarget(t, fmt.Sprint("v", i))
		all = append(all, &recycler{d: d, target: tg, passes: func(dst string) (bool, error) { return judge(d, tg, dst) }})
	}
	for range 4 {
		cg := testenv.NewCgroup(t)
		tg, err := target.ResolveCgroup(cg.Path)
		if err != nil {
			t.Fatal(err)
		}
		job := testenv.StartWorkload(t, ns, cg)
		all = append(all, &recycler{d: d, target: tg, passes: func(dst string) (bool, error) {
			out := job.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: netip.AddrPortFrom(netip.MustParseAddr(dst), 9)})
			if out.Errno != 0 && out.Errno != unix.EPERM {
				return false, fmt.Errorf("probe: %s", out)
			}
			return out.Errno == 0, nil
		}})
	}
	var working, flooding sync.WaitGroup
	var stop atomic.Bool
	var flooded atomic.Int64
	for i, r := range all {
		r.number = byte(i + 1)
	}
	for i, r := range all {
		var foreign []string
		for j, other := range all {
			if j != i {
				foreign = append(foreign, other.addr(0), other.addr(1), other.addr(2))
			}
		}
		working.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 4))
			for n := range turns {
				if err := r.turn(t, rng, foreign); err != nil {
					t.Errorf("target %d, turn %d: %v", i, n, err)
					return
				}
			}
		})
		if r.target.Type != target.Interface {
			continue // is not filtered in between
		}
		// Attached, closed, by whatever policy, or not at all: what is never its own never passes.
		flooding.Go(func() {
			for n := 0; !stop.Load(); n++ {
				dst := foreign[n%len(foreign)]
				if got, err := judge(d, r.target, dst); got || err != nil {
					t.Errorf("target %d: %s passes: %v, %v", i, dst, got, err)
					return
				}
				flooded.Add(1)
			}
		})
	}
	working.Wait()
	stop.Store(true)
	flooding.Wait()
	judged, full := 0, 0
	for _, r := range all {
		judged, full = judged+r.judged, full+r.full
	}
	t.Logf("%d verdicts compared, %d more of what must not pass, %d refusals", judged, flooded.Load(), full)
	if full == 0 {
		t.Error("no place was ever missing, so few were used again")
	}
}

// judge is what the program says of a packet that comes to an interface.
func judge(d *Datapath, tg target.Target, dst string) (passes bool, err error) {
	packet := udp4(dst, 9)
	verdict, err := d.bpf.NfOutL2.Run(&ebpf.RunOptions{
		Data: append(packet, make([]byte, max(0, 64-len(packet)))...), Context: &skb{Ifindex: uint32(tg.Ifindex)},
	})
	return verdict == passed, err
}

// A policy that replaces another in one step is seen whole, whatever its size: both
// allow one address and deny another, by different rules.
func TestNoPacketSeesHalf(t *testing.T) {
	flips, rules := 60, 1000
	if os.Getenv("NETFENCE_SOAK") != "" {
		flips, rules = 1000, 10_000
	}
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	both := func(wide, narrow string) *policy.Compiled {
		p := manyRules(rules)
		p.Allow = append(p.Allow, rule(wide))
		p.Deny = append(p.Deny, rule(narrow))
		return compile(t, p)
	}
	// The tables have nothing in common that decides: half of one and half of the other would err.
	policies := []*policy.Compiled{
		both("198.18.0.0/16", "198.18.2.0/24"),
		both("198.18.1.0/24", "198.0.0.0/8"),
	}
	if err := d.Replace(id, policies[1]); err != nil {
		t.Fatal(err)
	}
	var flooding sync.WaitGroup
	var stop atomic.Bool
	var judged atomic.Int64
	for dst, want := range map[string]bool{"198.18.1.1": true, "198.18.2.1": false} {
		flooding.Go(func() {
			for !stop.Load() {
				if got, err := judge(d, tg, dst); got != want || err != nil {
					t.Errorf("%s passes: %v, %v; want %v by either policy", dst, got, err, want)
					return
				}
				judged.Add(1)
			}
		})
	}
	for n := range flips {
		if err := d.Replace(id, policies[n%2]); err != nil {
			t.Error(err)
			break
		}
	}
	stop.Store(true)
	flooding.Wait()
	t.Logf("%d replaces of %d rules, %d packets", flips, rules, judged.Load())
}

// An index is given out again only when no packet can still be judged by its last
// word, the one that has rested longest first, and not when it is worn out.
func TestIndicesRest(t *testing.T) {
	i := indices{free: []uint32{1, 2, 3}}
	graces := 0
	grace := func() error { graces++; return nil }
	take := func(want uint32, waits int) {
		t.Helper()
		got, err := i.take(grace)
		if err != nil || got != want || graces != waits {
			t.Fatalf("%d after %d graces, %v; want %d after %d", got, graces, err, want, waits)
		}
	}
	take(1, 0)
	i.release(&attachment{index: 1})
	take(2, 0)
	take(3, 0)
	i.release(&attachment{index: 3, word: wornGeneration << wordGenerationShift})
	i.release(&attachment{index: 2})
	take(1, 1)
	take(2, 1)
	if _, err := i.take(grace); !errors.Is(err, ErrFull) || graces != 1 {
		t.Errorf("after the last: %v, %d graces", err, graces)
	}
	i.release(&attachment{index: 1})
	if _, err := i.take(func() error { return unix.ENOMEM }); !errors.Is(err, ErrFull) {
		t.Errorf("without memory: %v", err)
	}
	take(1, 2)
}

// At the last generation a policy is refused, since nothing could be cut any more,
// and Detach still closes.
func TestGenerationsEnd(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("198.18.0.0/16")}})
	a := d.known[id]
	last := a.word&wordPolicyMask | 0xffffffff<<wordGenerationShift
	if err := d.bpf.NfWords.Put(a.index, last); err != nil {
		t.Fatal(err)
	}
	a.word = last
	if err := d.Replace(id, compile(t, &policy.Policy{Mode: policy.ModeDisabled})); !errors.Is(err, ErrFull) {
		t.Errorf("replace: %v, want %v", err, ErrFull)
	}
	verdict(t, d, tg, "as it was", udp4("198.18.0.1", 9), passed)
	verdict(t, d, tg, "as it was", udp4("198.19.0.1", 9), dropped)
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	verdict(t, d, tg, "detached", udp4("198.18.0.1", 9), dropped)
	var word uint64
	if err := d.bpf.NfWords.Lookup(a.index, &word); err != nil || word&wordPolicyMask != uint64(bpfModeMODE_BLOCK_ALL) {
		t.Errorf("word %#x, %v", word, err)
	}
}
