// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// A Datapath for few cgroups confines them as any other does.
func TestOpenForOneCgroup(t *testing.T) {
	dir, cg, ns := pinDir(t), testenv.NewCgroup(t), testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: ns, Name: "d0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.1/24")}},
		testenv.End{NS: testenv.NewNS(t), Name: "d0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.2/24")}})
	tg, err := target.ResolveCgroup(cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Dir: dir, Only: Cgroups, MaxAttachments: 1}
	d, h := openHearing(t, cfg)
	id := attach(t, d, tg)
	replace(t, d, id, &policy.Policy{
		Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("10.5.0.2/32", ports(9, 9, policy.UDP))},
	})
	w := testenv.StartWorkload(t, ns, cg)
	send := func(to string) unix.Errno {
		return w.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: netip.MustParseAddrPort(to)}).Errno
	}
	if errno := send("10.5.0.2:9"); errno != 0 {
		t.Errorf("allowed: %v", errno)
	}
	if errno := send("10.5.0.2:10"); errno != unix.EPERM {
		t.Errorf("denied: %v", errno)
	}
	if got, _ := h.take(t); len(got) != 1 || got[0].Attachment != id {
		t.Errorf("told of %+v", got)
	}

	if err := d.Attach(newID(), cgroupTarget(t)); !errors.Is(err, ErrFull) {
		t.Errorf("a second attachment: %v", err)
	}
	if err := d.Attach(newID(), vethTarget(t, "v0")); !errors.Is(err, errOnlyCgroups) {
		t.Errorf("an interface: %v", err)
	}

	// Who comes after it takes over what it has pinned, if it is of its size.
	again := openWith(t, cfg)
	if errno := send("10.5.0.2:10"); errno != unix.EPERM || len(again.Attachments()) != 1 {
		t.Errorf("taken over: %v, %+v", errno, again.Attachments())
	}
	if _, err := openRenewed(Config{Dir: dir}); !errors.Is(err, ebpf.ErrMapIncompatible) {
		t.Errorf("of another size: %v", err)
	}
}

// What only interfaces need is missing: one that is attached already is an error, not open.
func TestOpenForCgroupsRefusesAttachedInterfaces(t *testing.T) {
	dir := pinDir(t)
	d := open(t, dir)
	attach(t, d, vethTarget(t, "v0"))
	if _, err := openRenewed(Config{Dir: dir, Only: Cgroups}); !errors.Is(err, errOnlyCgroups) {
		t.Errorf("got %v", err)
	}
}

func TestOpenIsAsLargeAsItsLimits(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  Config
		want map[string]uint32
	}{
		"everything": {Config{}, map[string]uint32{
			bpfMapNfAttachments: maxAttachments, bpfMapNfDrops: maxAttachments * maxReasons,
			bpfMapNfSlots: uint32(bpfLimitMAX_SLOTS), bpfMapNfFlows: uint32(bpfLimitMAX_FLOWS),
		}},
		"few": {Config{MaxAttachments: 4}, map[string]uint32{
			bpfMapNfAttachments: 5, bpfMapNfDrops: 5 * maxReasons, bpfMapNfSlots: fewSlots, bpfMapNfFlows: 4 * fewEntries,
			bpfMapNfEvents: fewBytes,
		}},
		"few with many flows": {Config{MaxAttachments: 1, MaxFlows: 100_000}, map[string]uint32{bpfMapNfFlows: 200_000}},
		"more than there can be": {Config{MaxAttachments: 1 << 20}, map[string]uint32{
			bpfMapNfAttachments: maxAttachments, bpfMapNfFlows: uint32(bpfLimitMAX_FLOWS),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := loadBpf()
			if err != nil {
				t.Fatal(err)
			}
			tt.cfg.shrink(spec)
			for m, want := range tt.want {
				if got := spec.Maps[m].MaxEntries; got != want {
					t.Errorf("%s: %d entries, want %d", m, got, want)
				}
			}
		})
	}
}
