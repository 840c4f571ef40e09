// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/netfence/netfence/policy"
)

// course is a walk through the addresses from first on, of which there are as
// many, in steps that lead to each of them once before the first comes again.
type course struct {
	first       netip.Addr
	count, step uint32
}

// part is the nth of as many parts of its addresses.
func (c course) part(n, parts int) []string {
	first := c.first.As4()
	size := c.count / uint32(parts)
	addrs := make([]string, size)
	for i := range addrs {
		var at [4]byte
		binary.BigEndian.PutUint32(at[:], binary.BigEndian.Uint32(first[:])+uint32(n)*size+uint32(i))
		addrs[i] = netip.AddrFrom4(at).String()
	}
	return addrs
}

// The offset of an IPv4 destination in a frame.
const destination = 14 + 16

// walking is a program that moves the packet's destination one step on, and then
// is the program next. BPF_PROG_TEST_RUN keeps the packet between repetitions.
func walking(b *testing.B, c course, next *ebpf.Program) *ebpf.Program {
	b.Helper()
	array, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = closeBPF(array) })
	first := c.first.As4()
	base := int64(binary.BigEndian.Uint32(first[:]))
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.SchedCLS,
		License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 76, asm.Word), // __sk_buff.data
			asm.LoadMem(asm.R3, asm.R1, 80, asm.Word), // __sk_buff.data_end
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, destination+4),
			asm.JGT.Reg(asm.R4, asm.R3, "out"),
			asm.LoadMem(asm.R5, asm.R2, destination, asm.Word),
			asm.HostTo(asm.BE, asm.R5, asm.Word),
			asm.LoadImm(asm.R4, base, asm.DWord),
			asm.Sub.Reg(asm.R5, asm.R4),
			asm.Add.Imm(asm.R5, int32(c.step)),
			asm.Mod.Imm(asm.R5, int32(c.count)),
			asm.Add.Reg(asm.R5, asm.R4),
			asm.HostTo(asm.BE, asm.R5, asm.Word),
			asm.StoreMem(asm.R2, destination, asm.R5, asm.Word),
			asm.LoadMapPtr(asm.R2, array.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 7).WithSymbol("out"), // no verdict of anybody's
			asm.Return(),
		},
	})
	if err != nil {
		b.Fatalf("%+v", err)
	}
	b.Cleanup(func() { _ = closeBPF(program) })
	if err := array.Put(uint32(0), next); err != nil {
		b.Fatal(err)
	}
	return program
}

// BenchmarkFirst is what the first packet to a destination costs: each goes to
// another one, of which no processor remembers anything.
func BenchmarkFirst(b *testing.B) {
	const names, addrs = 256, 16384
	d := openWith(b, Config{Dir: pinDir(b), MaxLearned: addrs, MaxFlows: 2 * addrs})
	id := attach(b, d, vethTarget(b, "v0"))
	// 256 addresses of each rule, and in no order that a trie is fast with.
	allowed := course{nthPrefix(0).Addr(), 256 * 1000, 99_583}
	forbidden := course{netip.MustParseAddr("90.0.0.0"), 256 * 1000, 99_583}
	learned := course{netip.MustParseAddr("203.0.64.0"), addrs, 6_151}
	thousand, byName := manyRules(1000), manyRules(1000)
	byName.DNS = policy.DNS{Mode: policy.DNSAllowlist, Allow: []policy.DomainRule{domain("*.example")}}

	// all sends a packet to each address of the course, or to as many as tell enough.
	all := func(p *ebpf.Program, want uint32, c course) time.Duration {
		verdict, took, err := p.Benchmark(append(udp4(c.first.String(), 9), make([]byte, 64)...), int(min(c.count, 200_000)), nil)
		if err != nil || verdict != want {
			b.Fatalf("verdict %#x, want %#x: %v", verdict, want, err)
		}
		return took
	}
	static := compile(b, thousand)
	first := func(p *ebpf.Program, want uint32, c course) func() time.Duration {
		walk := walking(b, c, p)
		return func() time.Duration {
			lend(b, d, id)
			if err := d.Replace(id, static); err != nil {
				b.Fatal(err)
			}
			return all(walk, want, c)
		}
	}
	taught := compile(b, byName)
	toLearned, other := walking(b, learned, d.bpf.NfOutL2), vethTarget(b, "v1")
	// Flows are noted once: each round has an attachment of its own.
	firstLearned := func(times int) func() time.Duration {
		return func() (took time.Duration) {
			id := attachOnly(b, d, other)
			if err := d.Replace(id, taught); err != nil {
				b.Fatal(err)
			}
			for n := range names {
				learn(b, d, id, fmt.Sprintf("n%d.example", n), time.Hour, learned.part(n, names)...)
			}
			lend(b, d, id)
			for range times {
				took = all(toLearned, passed, learned)
			}
			if err := d.Detach(id); err != nil {
				b.Fatal(err)
			}
			return took
		}
	}
	out := d.bpf.NfOutL2
	for b.Loop() {
		compare(b, "first packet to a destination", rounds, []benchCase{
			{"empty program", first(emptyProgram(b), passed, allowed)},
			{"allowed by one of 1,000 rules", first(out, passed, allowed)},
			{"denied and counted, 1,000 rules", first(out, dropped, forbidden)},
			{"learned, beside 1,000 rules: its grant, its name, its flow noted", firstLearned(1)},
			{"the same, its flow known", firstLearned(2)},
		})
	}
}
