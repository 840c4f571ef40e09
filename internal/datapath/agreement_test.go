// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/netfence/netfence/policy"
)

// TestKernelAgreesWithPolicy throws random packets at random policies and
// compares the program's verdict with policy.Decide, the reference. Each packet
// comes twice: the second time the program may remember.
func TestKernelAgreesWithPolicy(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	const seed = 42
	rng := rand.New(rand.NewPCG(seed, 0))
	for n := range 150 {
		p := randomPolicy(rng).Settle(nil, bootTime(t), time.Now())
		c, err := p.Compile()
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Replace(id, c); err != nil {
			t.Fatal(err)
		}
		for range 40 {
			f, packet := randomFlow(rng)
			want := uint32(dropped)
			if p.Decide(f, bootTime(t)).Action == policy.Allow {
				want = passed
			}
			for _, time := range []string{"first", "second"} {
				if got := run(t, d.bpf.NfOutL2, tg, packet); got != want {
					t.Fatalf("seed %d, policy %d, %+v, the %s time: verdict %#x, want %#x; policy %+v", seed, n, f, time, got, want, p)
				}
			}
		}
	}
}

// Few distinct values, so that rules cover each other and packets meet them.
func randomAddr(rng *rand.Rand) netip.Addr {
	v4 := netip.AddrFrom4([4]byte{10, byte(rng.IntN(2)), byte(rng.IntN(2)) << 7, byte(rng.IntN(3))})
	switch rng.IntN(4) {
	case 0:
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::%d", rng.IntN(2), rng.IntN(3)))
	case 1:
		b := netip.MustParseAddr("64:ff9b::").As16()
		copy(b[12:], v4.AsSlice())
		return netip.AddrFrom16(b)
	}
	return v4
}

func randomRule(rng *rand.Rand) policy.Rule {
	a := randomAddr(rng)
	r := policy.Rule{Prefix: netip.PrefixFrom(a, rng.IntN(a.BitLen()+1)).Masked()}
	for range rng.IntN(3) {
		first := uint16(rng.IntN(4))
		r.Ports = append(r.Ports, policy.Ports{
			First: 1 + first, Last: 1 + first + uint16(rng.IntN(3)),
			Protocol: []policy.Protocol{0, policy.TCP, policy.UDP}[rng.IntN(3)],
		})
	}
	switch rng.IntN(6) {
	case 0:
		r.TTL = time.Hour
	case 1:
		r.ExpiresAt = time.Now().Add(-time.Second) // over before it begins
	}
	return r
}

func randomPolicy(rng *rand.Rand) *policy.Policy {
	p := &policy.Policy{
		Mode:    []policy.Mode{policy.ModeAllowlist, policy.ModeDenylist}[rng.IntN(2)],
		Replies: policy.RepliesDeny,
	}
	for range rng.IntN(12) {
		p.Allow = append(p.Allow, randomRule(rng))
	}
	for range rng.IntN(6) {
		p.Deny = append(p.Deny, randomRule(rng))
	}
	return p
}

func randomFlow(rng *rand.Rand) (policy.Flow, []byte) {
	f := policy.Flow{Addr: randomAddr(rng), Port: uint16(rng.IntN(8)), Protocol: policy.TCP}
	payload := tcp(4000, int(f.Port), flagSYN)
	switch rng.IntN(4) {
	case 0:
		f.Protocol, payload = policy.UDP, udp(4000, int(f.Port))
	case 1:
		f.Protocol, f.Port, f.Portless, payload = protoESP, 0, true, make([]byte, 16)
	}
	if f.Addr.Is4() {
		h := ipv4{dst: f.Addr.String(), proto: byte(f.Protocol)}
		if rng.IntN(5) == 0 {
			h.frag, f.Port, f.Portless = 100, 0, true
		}
		return f, frame(h.packet(payload), etherIPv4)
	}
	return f, frame(ipv6{dst: f.Addr.String(), proto: byte(f.Protocol)}.packet(payload), etherIPv6)
}
