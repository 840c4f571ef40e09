// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// flood is what a workload sends without pause, and who watches what arrives.
type flood struct {
	to   netip.AddrPort
	stop func() testenv.Outcome
}

func startFlood(t *testing.T, from *testenv.Workload, arrived *testenv.Observer, to string, arrives bool) flood {
	t.Helper()
	f := flood{to: netip.MustParseAddrPort(to)}
	f.stop = from.Flood(t, f.to)
	if arrives {
		arrived.Await(t, 1000, toPort(f.to))
	}
	return f
}

func toPort(to netip.AddrPort) func(testenv.Packet) bool {
	return func(p testenv.Packet) bool {
		return p.Protocol == protoUDP && p.Dst == to.Addr() && p.Port == to.Port()
	}
}

// flooded is a world with an attachment that two floods reach: one that its policy allows, one that it does not.
type flooded struct {
	d                  *Datapath
	tg                 target.Target
	id                 string
	arrived            *testenv.Observer
	allowed, forbidden flood
}

func newFlooded(t *testing.T, d *Datapath) *flooded {
	t.Helper()
	f := &flooded{d: d}
	world := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	var err error
	if f.tg, err = target.ResolveInterface(world.Link, target.Ingress, ""); err != nil {
		t.Fatal(err)
	}
	f.arrived = testenv.Observe(t, world.Outside, "eth0")
	w := testenv.StartWorkload(t, world.Workload, nil)
	f.id = attach(t, f.d, f.tg)
	replace(t, f.d, f.id, &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("198.51.100.0/24")}})
	f.allowed = startFlood(t, w, f.arrived, "198.51.100.7:1000", true)
	f.forbidden = startFlood(t, w, f.arrived, "203.0.113.6:1000", false)
	return f
}

// noGap fails unless all that was allowed has arrived, and nothing else.
func (f *flooded) noGap(t *testing.T) {
	t.Helper()
	sent, tried := f.allowed.stop().Sent, f.forbidden.stop().Sent
	f.arrived.Await(t, sent, toPort(f.allowed.to))
	if got := f.arrived.Sum(t, toPort(f.forbidden.to)).Count; got != 0 || tried < 1000/int(testenv.Slow) {
		t.Errorf("%d of %d forbidden packets arrived, want none of many", got, tried)
	}
}
