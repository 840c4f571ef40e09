// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// fallible is what is done to one attachment, and dies on the way.
type fallible struct {
	name  string
	only  target.Type                            // 0: both
	begin func(t *testing.T, v *victim)          // brings about what is there before
	do    func(v *victim) error                  // can be done again after a crash
	fine  func(got, before, after standing) bool // besides before and after; nil: nothing
}

// victim is an attachment, and the daemon that it has for now.
type victim struct {
	d      *Datapath
	dir    string
	id     string
	target target.Target
	from   *testenv.Workload
}

var (
	toForbidden = netip.MustParseAddrPort("203.0.113.6:9")
	serverAddrs = []netip.Addr{netip.MustParseAddr(server), netip.MustParseAddr("2001:db8:200::5")}

	firstPolicy  = &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("198.51.100.0/24"), rule("192.0.2.77/32")}}
	secondPolicy = &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{
		rule("198.51.100.0/24"), rule("192.0.2.78/32", ports(443, 443, policy.TCP), ports(80, 90, 0)),
	}}
	namesPolicy = &policy.Policy{Mode: policy.ModeAllowlist, Allow: firstPolicy.Allow, DNS: policy.DNS{
		Mode: policy.DNSAllowlist, Allow: []policy.DomainRule{domain("a.example")},
	}}
)

// in brings a policy into force, whatever was before.
func (v *victim) in(t *testing.T, p *policy.Policy) {
	t.Helper()
	if err := v.d.Attach(v.id, v.target); err != nil {
		t.Fatal(err)
	}
	replace(t, v.d, v.id, p)
}

func (v *victim) out(t *testing.T) {
	t.Helper()
	if err := v.d.Detach(v.id); err != nil {
		t.Fatal(err)
	}
}

func (v *victim) replace(p *policy.Policy) error {
	boot, err := BootClock()
	if err != nil {
		return err
	}
	c, err := p.Settle(nil, boot, time.Now()).Compile()
	if err != nil {
		return err
	}
	if err := v.d.Attach(v.id, v.target); err != nil {
		return err
	}
	return v.d.Replace(v.id, c)
}

func (v *victim) learn() error {
	if err := v.replace(namesPolicy); err != nil {
		return err
	}
	index, _ := v.d.Index(v.id)
	m := v.d.Chain(index)[0]
	g, _ := m.Names.Grant(m.Names.Decide("a.example"))
	return v.d.Learn([]Lesson{{Member: m, Name: "a.example", Grant: g, TTL: time.Hour, Addrs: serverAddrs}}, true)
}

func (v *victim) verdict() hook { return v.d.hooks(v.d.known[v.id].record)[0] }

var fallibles = []fallible{
	{
		name:  "attach",
		begin: func(t *testing.T, v *victim) { v.out(t) },
		do:    func(v *victim) error { return v.d.Attach(v.id, v.target) },
	},
	{
		name: "detach",
		begin: func(t *testing.T, v *victim) {
			v.out(t)
			if err := v.learn(); err != nil {
				t.Fatal(err)
			}
		},
		do: func(v *victim) error { return v.d.Detach(v.id) },
		// Closed, with its links or without, until somebody says whether it is to go.
		fine: func(got, _, _ standing) bool { return got.Mode == bpfModeMODE_BLOCK_ALL },
	},
	{
		name:  "replace",
		begin: func(t *testing.T, v *victim) { v.in(t, firstPolicy) },
		do:    func(v *victim) error { return v.replace(secondPolicy) },
	},
	{
		name: "learn",
		begin: func(t *testing.T, v *victim) {
			v.in(t, firstPolicy)
			v.in(t, namesPolicy)
		},
		do: (*victim).learn,
		// An answer is sent when all its addresses are learned; some are no harm.
		fine: func(got, before, after standing) bool {
			for _, l := range got.Learned {
				if !slices.Contains(after.Learned, l) {
					return false
				}
			}
			got.Learned, got.Names, got.Chunks = before.Learned, before.Names, before.Chunks
			return reflect.DeepEqual(got, before)
		},
	},
	{
		name: "cut",
		begin: func(t *testing.T, v *victim) {
			v.in(t, firstPolicy)
			if err := v.learn(); err != nil {
				t.Fatal(err)
			}
		},
		do: func(v *victim) error { return v.replace(firstPolicy) },
		// Names are marked to end at the next word, and hold until it comes. They are not listed any more.
		fine: func(got, before, _ standing) bool {
			got.Learned = before.Learned
			return reflect.DeepEqual(got, before)
		},
	},
	{
		name: "put back",
		begin: func(t *testing.T, v *victim) {
			v.in(t, firstPolicy)
			if err := v.d.takeAway(v.id, repliesHook); err != nil {
				t.Fatal(err)
			}
		},
		do: func(v *victim) error { return v.d.Attach(v.id, v.target) },
		// What comes after the hook can fail, too.
		fine: func(got, _, after standing) bool { return reflect.DeepEqual(got, after) },
	},
	{
		name:  "take the lead",
		only:  target.Interface,
		begin: func(t *testing.T, v *victim) { v.in(t, firstPolicy) },
		do: func(v *victim) error {
			h := v.verdict()
			return v.d.lead(h.by.(leader), h, v.d.known[v.id].record, v.id)
		},
	},
}

// A datapath that dies at any change that it makes to the kernel is followed by one that finds what was before or what
// was to be, with nothing left over; and packets find a filter all the while.
func TestCrashAtEveryStep(t *testing.T) {
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
	arrived := testenv.Observe(t, world.Outside, "eth0")
	for _, v := range []*victim{
		{target: veth, from: testenv.StartWorkload(t, world.Workload, nil)},
		{target: cgroup, from: testenv.StartWorkload(t, world.Host, cg)},
	} {
		v.dir, v.id = pinDir(t), newID()
		v.open(t)
		nothing := v.standing(t)
		for i, f := range fallibles {
			if f.only != 0 && f.only != v.target.Type {
				continue
			}
			f.begin(t, v)
			open := v.standing(t).Mode == nothing.Mode && len(v.standing(t).Pins) == 0 || f.name == "detach"
			var allowed, forbidden flood
			if !open {
				port := fmt.Sprintf(":%d", 1000*int(v.target.Type)+i)
				allowed = startFlood(t, v.from, arrived, "198.51.100.7"+port, true)
				forbidden = startFlood(t, v.from, arrived, "203.0.113.6"+port, false)
			}
			steps := v.dieAtEach(t, m, f)
			t.Logf("%s, %s: %d steps", v.target.Type, f.name, steps)
			if !open {
				sent, tried := allowed.stop().Sent, forbidden.stop().Sent
				arrived.Await(t, sent, toPort(allowed.to))
				if n, got := arrived.Sum(t, toPort(forbidden.to)).Count, arrived.Sum(t, toPort(allowed.to)).Count; n != 0 || got != sent {
					t.Errorf("%s, %s: %d of %d forbidden packets arrived, %d of %d allowed", v.target.Type, f.name, n, tried, got, sent)
				}
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

func (v *victim) config() Config {
	cfg := Config{Dir: v.dir, MaxAttachments: 4}
	if v.target.Type == target.Cgroup {
		cfg.Only = Cgroups
	}
	return cfg
}

func (v *victim) open(t *testing.T) {
	t.Helper()
	d, err := openRenewed(v.config())
	if err != nil {
		t.Fatal(err)
	}
	v.d = d
}

// dieAtEach kills v's datapath at the first step of f, then at the second, until f is done before that.
func (v *victim) dieAtEach(t *testing.T, m *mortality, f fallible) (steps int) {
	t.Helper()
	before := v.standing(t)
	if err := errors.Join(f.do(v), v.d.Close()); err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
	v.open(t)
	after := v.standing(t)
	for fatal := 1; ; fatal++ {
		where := fmt.Sprintf("%s, %s, step %d", v.target.Type, f.name, fatal)
		f.begin(t, v)
		if got := v.standing(t); !reflect.DeepEqual(got, before) {
			t.Fatalf("%s: %+v before, was %+v", where, got, before)
		}
		died, err := m.until(fatal, func() error { return errors.Join(f.do(v), v.d.Close()) })
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		v.open(t)
		got := v.standing(t)
		if !reflect.DeepEqual(got, before) && !reflect.DeepEqual(got, after) && (f.fine == nil || !f.fine(got, before, after)) {
			t.Errorf("%s: left\n%+v, want\n%+v or\n%+v", where, got, before, after)
		}
		if len(got.Pins) > 0 {
			v.isClosed(t, where)
		}
		if err := f.do(v); err != nil {
			t.Fatalf("%s: again: %v", where, err)
		}
		if got := v.standing(t); !reflect.DeepEqual(got, after) {
			t.Errorf("%s: in the end\n%+v, want\n%+v", where, got, after)
		}
		if !died {
			return fatal - 1
		}
	}
}

// isClosed sends what no policy here allows.
func (v *victim) isClosed(t *testing.T, where string) {
	t.Helper()
	if v.target.Type == target.Interface {
		h := v.verdict()
		if got := run(t, h.program, v.target, udp4("203.0.113.6", 9)); got != dropped {
			t.Errorf("%s: verdict %#x, want drop", where, got)
		}
		if on, err := link.QueryPrograms(link.QueryOptions{Target: v.target.Ifindex, Attach: h.attach}); err != nil || len(on.Programs) != 1 {
			t.Errorf("%s: programs on the device: %+v, %v", where, on, err)
		}
		return
	}
	if out := v.from.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: toForbidden}); out.Errno == 0 {
		t.Errorf("%s: forbidden: %s", where, out)
	}
}
