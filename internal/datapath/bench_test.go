// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

func nthPrefix(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{20 + byte(i>>16), byte(i >> 8), byte(i), 0}), 24)
}

func manyRules(n int) *policy.Policy {
	p := &policy.Policy{Mode: policy.ModeAllowlist, Allow: make([]policy.Rule, n)}
	for i := range p.Allow {
		p.Allow[i].Prefix = nthPrefix(i)
	}
	return p
}

// emptyProgram lets everything pass, and is what others are compared with.
func emptyProgram(b *testing.B) *ebpf.Program {
	b.Helper()
	return returning(b, ebpf.SchedCLS, -1)
}

func emptyCgroupProgram(b *testing.B) *ebpf.Program {
	b.Helper()
	return returning(b, ebpf.CGroupSKB, 1)
}

func returning(b *testing.B, kind ebpf.ProgramType, verdict int32) *ebpf.Program {
	b.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         kind,
		License:      "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = closeBPF(p) })
	return p
}

// lend gives lo, which is no target, the identity of an attached interface: it is
// where BPF_PROG_TEST_RUN has packets come from that is to tell how long it took.
func lend(b *testing.B, d *Datapath, id string) {
	b.Helper()
	const lo = 1
	cookie, err := target.NetnsCookie()
	if err != nil {
		b.Fatal(err)
	}
	place := bpfInterfacePlace{Identity: identity(d.known[id]), Netns: cookie, Ifindex: lo}
	if err := d.bpf.NfInterfacePlaces.Put(uint32(lo), &place); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPacket is what a packet costs at an interface, beside a program that does nothing.
func BenchmarkPacket(b *testing.B) {
	d := openWith(b, Config{Dir: pinDir(b), Events: func(events.Event) {}})
	id := attach(b, d, vethTarget(b, "v0"))
	lend(b, d, id)
	nothing := emptyProgram(b)

	names := manyRules(1000)
	names.DNS = policy.DNS{Mode: policy.DNSAllowlist, Allow: []policy.DomainRule{domain("a.example")}}
	byName := compile(b, names)
	packets := func(p *ebpf.Program, want uint32, packet []byte, c *policy.Compiled, learned ...string) func() time.Duration {
		return func() time.Duration {
			if err := d.Replace(id, c); err != nil {
				b.Fatal(err)
			}
			if len(learned) > 0 {
				learn(b, d, id, "a.example", time.Hour, learned...)
			}
			verdict, took, err := p.Benchmark(append(packet, make([]byte, 64)...), 200_000, nil)
			if err != nil || verdict != want {
				b.Fatalf("verdict %#x, want %#x: %v", verdict, want, err)
			}
			return took
		}
	}
	to := nthPrefix(5).Addr().Next().String()
	ten, thousand, many := compile(b, manyRules(10)), compile(b, manyRules(1000)), compile(b, manyRules(100_000))
	disabled, denylist := compile(b, &policy.Policy{Mode: policy.ModeDisabled}), compile(b, &policy.Policy{Mode: policy.ModeDenylist})
	out := d.bpf.NfOutL2
	for b.Loop() {
		compare(b, "per packet", rounds, []benchCase{
			{"empty program", packets(nothing, passed, udp4(to, 9), ten)},
			{"disabled", packets(out, passed, udp4(to, 9), disabled)},
			{"denylist without rules", packets(out, passed, udp4(to, 9), denylist)},
			{"repeated destination, 10 rules", packets(out, passed, udp4(to, 9), ten)},
			{"repeated destination, 1,000 rules", packets(out, passed, udp4(to, 9), thousand)},
			{"repeated destination, 100,000 rules", packets(out, passed, udp4(to, 9), many)},
			{"denied and counted, over the rate of events, 1,000 rules", packets(out, dropped, udp4("9.9.9.9", 9), thousand)},
			{"repeated destination, learned, 1,000 rules", packets(out, passed, udp4(server, 9), byName, server)},
			{"denied and counted, something else learned", packets(out, dropped, udp4("9.9.9.9", 9), byName, server)},
			{"the other side, no flows", packets(d.bpf.NfInL2, passed, tcp4(to, 9)[:34], ten)},
		})
	}
}

// BenchmarkControl is what the daemon's own work in the kernel costs.
func BenchmarkControl(b *testing.B) {
	d := open(b, pinDir(b))
	veth, cgroup := vethTarget(b, "v0"), cgroupTarget(b)
	timed := func(f func() error) time.Duration {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	attaching := func(tg target.Target) func() time.Duration {
		return func() time.Duration {
			id := newID()
			took := timed(func() error { return d.Attach(id, tg) })
			timed(func() error { return d.Detach(id) })
			return took
		}
	}
	id := attach(b, d, cgroupTarget(b))
	other := attach(b, d, cgroupTarget(b))
	replacing := func(n int) func() time.Duration {
		round := 0
		return func() time.Duration {
			round++
			p := manyRules(n)
			p.Allow[0].Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{7, byte(round >> 8), byte(round), 0}), 24)
			c := compile(b, p)
			return timed(func() error { return d.Replace(id, c) })
		}
	}
	byName := compile(b, domains(domain("*.example")))
	// learning has a new attachment learn an address under each of as many names.
	learning := func(names int) func() time.Duration {
		return func() time.Duration {
			const addrs = 256
			learner := attach(b, d, cgroupTarget(b))
			if err := d.Replace(learner, byName); err != nil {
				b.Fatal(err)
			}
			lessons := make([]Lesson, addrs)
			for i := range lessons {
				lessons[i] = lesson(b, d, learner, fmt.Sprintf("n%d.example", i%names), time.Minute, fmt.Sprintf("203.0.113.%d", i))
			}
			took := timed(func() error {
				for i := range lessons {
					if err := d.Learn(lessons[i:i+1], true); err != nil {
						return err
					}
				}
				return nil
			})
			timed(func() error { return d.Detach(learner) })
			return took / addrs
		}
	}
	shared := compile(b, manyRules(1000))
	if err := d.Replace(other, shared); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		table(b, "in the kernel", []benchCase{
			{"attach a cgroup", attaching(cgroup)},
			{"attach an interface", attaching(veth)},
			{"replace by rules in use elsewhere", func() time.Duration {
				timed(func() error { return d.Replace(id, compile(b, policy.BlockAll())) })
				return timed(func() error { return d.Replace(id, shared) })
			}},
			{"learn a name and its address", learning(256)},
			{"learn an address of a known name", learning(1)},
			{"replace 10 rules", replacing(10)},
			{"replace 10,000 rules", replacing(10_000)},
			{"replace 100,000 rules", replacing(100_000)},
			{"start over it", func() time.Duration {
				var again *Datapath
				took := timed(func() (err error) { again, err = openRenewed(Config{Dir: string(d.pins)}); return err })
				timed(again.Close)
				return took
			}},
		})
	}
}
