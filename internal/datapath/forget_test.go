// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netfence/netfence/policy"
)

func TestChainIsWhatReplacePutInForce(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	id := attachOnly(t, d, vethTarget(t, "v0"))
	index, _ := d.Index(id)
	none := func(what string, d *Datapath, index uint32) {
		t.Helper()
		if chain := d.Chain(index); chain != nil {
			t.Errorf("%s: %v", what, chain)
		}
	}
	none("nobody", d, 0)
	none("out of range", d, maxAttachments)
	none("attached", d, index)
	replace(t, d, id, domains(domain("a.example")))
	if m := member(t, d, id); m.ID != id || m.Index != index || m.Names.Decide("a.example").Action != policy.Allow {
		t.Errorf("%+v", m)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, dir)
	none("adopted", d, index)
	replace(t, d, id, domains(domain("a.example"))) // as it was
	member(t, d, id)
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	none("detached", d, index)
}

func TestLearnRefusesWhatIsStale(t *testing.T) {
	d := openWith(t, Config{Dir: pinDir(t), MaxAttachments: 2})
	tg := vethTarget(t, "v0")
	id, other := attachOnly(t, d, tg), attach(t, d, vethTarget(t, "v1"))
	p := domains(domain("a.example"), domain("b.example"))
	replace(t, d, id, p)
	replace(t, d, other, p)
	stale := func(what string, l Lesson) {
		t.Helper()
		fresh := lesson(t, d, other, "a.example", time.Minute, "203.0.113.1")
		if err := d.Learn([]Lesson{fresh, l}, true); !errors.Is(err, ErrStale) {
			t.Errorf("%s: %v", what, err)
		}
		for incarnation := range uint32(5) {
			if names, grants := lessonsOf(t, d, incarnation); names+grants != 0 {
				t.Errorf("%s: incarnation %d learned %d names and %d grants", what, incarnation, names, grants)
			}
		}
	}
	for _, tt := range []struct {
		what string
		next *policy.Policy
	}{
		{"the same policy again", p},
		{"fewer names, the word as it was", domains(domain("b.example"))},
		{"more names, the word as it was", domains(domain("b.example"), domain("c.example"))},
		{"another word", &policy.Policy{Mode: policy.ModeDenylist, DNS: p.DNS}},
	} {
		l := lesson(t, d, id, "b.example", time.Minute, "203.0.113.1")
		replace(t, d, id, tt.next)
		stale(tt.what, l)
	}
	l := lesson(t, d, id, "b.example", time.Minute, "203.0.113.1")
	index := l.Member.Index
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	stale("detached", l)
	id = attach(t, d, tg)
	if again, _ := d.Index(id); again != index {
		t.Fatalf("index %d, want %d again", again, index)
	}
	stale("another life of the index", l)
	replace(t, d, id, p)
	stale("another life of the index, with a policy", l)
}

func TestRecycledIndexInheritsNothing(t *testing.T) {
	d := openWith(t, Config{Dir: pinDir(t), MaxAttachments: 1})
	tg := vethTarget(t, "v0")
	id := attachOnly(t, d, tg)
	p := domains(domain("a.example"))
	replace(t, d, id, p)
	learn(t, d, id, "a.example", time.Hour, server)
	ack := toServer(protoTCP, tcp(4000, 443, flagACK))
	verdict(t, d, tg, "learned", ack, passed)
	incarnation := d.known[id].record.Incarnation
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	if names, grants := lessonsOf(t, d, incarnation); names+grants != 0 {
		t.Errorf("%d names and %d grants are left", names, grants)
	}
	id = attach(t, d, tg)
	replace(t, d, id, p)
	verdict(t, d, tg, "the next life", ack, dropped)
	if list := d.Learned(id); list != nil {
		t.Errorf("learned %v", list)
	}
}

func TestReplaceCutsWhatItGrantsNoMore(t *testing.T) {
	https := ports(443, 443, policy.TCP)
	base := domains(domain("*.example"), domain("web.test", https))
	proxy := &policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSProxy}}
	for _, tt := range []struct {
		name string
		next *policy.Policy
		left []string // names
	}{
		{"as it was", base, []string{"a.example", "b.example", "web.test"}},
		{"rules more", domains(domain("*.example"), domain("web.test", https), domain("other.test")), []string{"a.example", "b.example", "web.test"}},
		{"another rule for a name", domains(domain("*.example"), domain("a.example"), domain("web.test", https)), []string{"a.example", "b.example", "web.test"}},
		{"a rule less", domains(domain("web.test", https)), []string{"web.test"}},
		{"one name denied", func() *policy.Policy {
			p := domains(domain("*.example"), domain("web.test", https))
			p.DNS.Deny = []policy.DomainRule{domain("a.example")}
			return p
		}(), []string{"b.example", "web.test"}},
		{"other ports", domains(domain("*.example"), domain("web.test", ports(80, 80, policy.TCP))), []string{"a.example", "b.example"}},
		{"no ports any more", domains(domain("*.example"), domain("web.test")), []string{"a.example", "b.example"}},
		{"dns disabled", &policy.Policy{Mode: policy.ModeAllowlist}, nil},
		{"proxy", proxy, nil},
		{"block-all", policy.BlockAll(), nil},
		{"denylist of addresses", &policy.Policy{Mode: policy.ModeDenylist, DNS: base.DNS}, []string{"a.example", "b.example", "web.test"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t, pinDir(t))
			tg := vethTarget(t, "v0")
			id := attach(t, d, tg)
			replace(t, d, id, base)
			addrs := map[string]string{"a.example": "203.0.113.1", "b.example": "203.0.113.2", "web.test": "203.0.113.3"}
			for name, addr := range addrs {
				learn(t, d, id, name, time.Hour, addr)
			}
			before := d.known[id].word
			replace(t, d, id, tt.next)
			for name, addr := range addrs {
				want := uint32(dropped)
				if slices.Contains(tt.left, name) || tt.next.Mode == policy.ModeDenylist {
					want = passed
				}
				verdict(t, d, tg, name, tcp4(addr, 443), want)
			}
			if names, _ := lessonsOf(t, d, d.known[id].record.Incarnation); names != len(tt.left) {
				t.Errorf("%d names in the kernel, want %v", names, tt.left)
			}
			if same := d.known[id].word == before; same && len(tt.left) < 3 {
				t.Error("names were cut without a new word")
			} else if !same && len(tt.left) == 3 && tt.next.Mode == policy.ModeAllowlist {
				t.Error("a new word, and nothing was cut")
			}
			replace(t, d, id, base)
			for name, addr := range addrs {
				want := uint32(dropped)
				if slices.Contains(tt.left, name) {
					want = passed
				}
				verdict(t, d, tg, name+", and back", tcp4(addr, 443), want)
			}
		})
	}
}

func TestProxyNamesOutliveOnlyProxyMode(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	proxy := &policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSProxy}}
	replace(t, d, id, proxy)
	l := Lesson{Member: member(t, d, id), Name: "a.example", Grant: policy.Grant{Proxy: true}, Addrs: []netip.Addr{netip.MustParseAddr(server)}, TTL: time.Hour}
	if err := d.Learn([]Lesson{l}, true); err != nil {
		t.Fatal(err)
	}
	more := *proxy
	more.Allow = []policy.Rule{rule("192.0.2.0/24")}
	replace(t, d, id, &more)
	verdict(t, d, tg, "still proxy", tcp4(server, 443), passed)
	replace(t, d, id, domains(domain("a.example")))
	verdict(t, d, tg, "a rule for the same name", tcp4(server, 443), dropped)
}

// Two policies take turns: one allows the address by a rule and cuts its name, the
// other allows it by name alone. No packet may fall between them. A second address
// is allowed by a name of either, learned anew each time.
func TestCutAndRulesChangeInOneStep(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	byName := domains(domain("a.example"))
	byRule := domains(domain("b.example"))
	byRule.Allow = []policy.Rule{rule(server + "/32")}
	// The control: denied by the rules of the one, cut in the other.
	byRule.Deny = []policy.Rule{rule("203.0.113.66/32")}
	withName, withRule := compile(t, byName), compile(t, byRule)

	var drops, leaks atomic.Uint64
	stop := make(chan struct{})
	var senders sync.WaitGroup
	start := func(packet []byte, count *atomic.Uint64, wrong uint32) {
		for len(packet) < 64 {
			packet = append(packet, 0)
		}
		senders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if run(t, d.bpf.NfOutL2, tg, packet) == wrong {
						count.Add(1)
					}
				}
			}
		})
	}
	if err := d.Replace(id, withName); err != nil {
		t.Fatal(err)
	}
	learn(t, d, id, "a.example", time.Hour, server)
	start(tcp4(server, 443), &drops, dropped)
	for range 30 {
		if err := d.Replace(id, withRule); err != nil { // cuts a.example
			t.Fatal(err)
		}
		// The way back: the name must be known before the rule goes.
		both := *byRule
		both.DNS = byName.DNS
		replace(t, d, id, &both)
		learn(t, d, id, "a.example", time.Hour, server)
		if err := d.Replace(id, withName); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	senders.Wait()
	if n := drops.Load(); n != 0 {
		t.Errorf("%d packets were dropped that both policies allow", n)
	}

	// And the reverse: learned under one policy, denied by rule in it; the name is
	// cut by the policy that has no such rule.
	stop = make(chan struct{})
	denied := domains(domain("a.example"))
	denied.Deny = []policy.Rule{rule("203.0.113.66/32")}
	replace(t, d, id, denied)
	learn(t, d, id, "a.example", time.Hour, "203.0.113.66")
	start(tcp4("203.0.113.66", 443), &leaks, passed)
	for range 30 {
		replace(t, d, id, domains(domain("b.example")))
		replace(t, d, id, denied)
		learn(t, d, id, "a.example", time.Hour, "203.0.113.66")
	}
	close(stop)
	senders.Wait()
	if n := leaks.Load(); n != 0 {
		t.Errorf("%d packets passed that neither policy allows", n)
	}
}

// Queries of two attachments, each other's neighbours in a chain, while their
// policies change and the sweep runs: what is remembered is what the kernel holds,
// and no lesson of an older policy stays.
func TestLearnWhileAllElseGoesOn(t *testing.T) {
	d := openWith(t, Config{Dir: pinDir(t), MaxLearned: 40, MaxNames: 20, Grace: time.Millisecond})
	ids := []string{attach(t, d, vethTarget(t, "v0")), attach(t, d, cgroupTarget(t))}
	policies := []*policy.Compiled{compile(t, domains(domain("*.example"))), compile(t, domains(domain("a.example"), domain("b.example")))}
	for _, id := range ids {
		if err := d.Replace(id, policies[0]); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	var learned, stale, full atomic.Uint64
	for worker := range 3 {
		all.Go(func() {
			for i := range 300 {
				name := string(rune('a'+(i+worker)%26)) + ".example"
				var lessons []Lesson
				for k := range ids {
					index, _ := d.Index(ids[(k+worker)%2]) // in either order
					m := d.Chain(index)[0]
					if g, ok := m.Names.Grant(m.Names.Decide(name)); ok {
						addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(i % 60)})
						lessons = append(lessons, Lesson{Member: m, Name: name, Grant: g, Addrs: []netip.Addr{addr}, TTL: time.Duration(i%3) * time.Minute})
					}
				}
				switch err := d.Learn(lessons, true); {
				case err == nil:
					learned.Add(1)
				case errors.Is(err, ErrStale):
					stale.Add(1)
				case errors.Is(err, ErrFull):
					full.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		for i := range 60 {
			if err := d.Replace(ids[i%2], policies[i/2%2]); err != nil {
				t.Error(err)
			}
		}
	})
	all.Go(func() {
		for range 60 {
			if err := d.sweepOnce(); err != nil {
				t.Error(err)
			}
			for _, id := range ids {
				d.Learned(id)
				d.namesOf(identity(d.known[id]), netip.MustParseAddr(server))
			}
		}
	})
	all.Wait()
	t.Logf("%d learned, %d stale, %d at a limit", learned.Load(), stale.Load(), full.Load())
	if learned.Load() == 0 {
		t.Error("nothing was learned")
	}
	for _, id := range ids {
		a := d.known[id]
		agrees(t, d, a)
		for _, n := range a.memory.names {
			if _, ok := a.member.Load().Names.GrantNow(n.text, n.proxy); !ok || n.cut != 0 {
				t.Errorf("%+v is known to a policy that does not grant it", n)
			}
		}
	}
}
