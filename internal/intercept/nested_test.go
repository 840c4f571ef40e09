// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// without intercepts no queries, and lets them out.
func without() *policy.Policy {
	p := everywhere()
	p.DNS.Mode = policy.DNSDisabled
	return p
}

func TestNestedCgroups(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	outer := testenv.NewCgroup(t)
	middle := outer.Child(t, "middle")
	inner := middle.Child(t, "gap").Child(t, "inner")
	d := open(t)
	outerID, outerIndex := attach(t, d, cgroupTarget(t, outer), everywhere())
	innerID, innerIndex := attach(t, d, cgroupTarget(t, inner), everywhere())
	middleID, middleIndex := attach(t, d, cgroupTarget(t, middle), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	front(t, intercept.OpenCgroups, d)
	asked := append(questions(append(plainKinds, mappedKinds...), []string{"198.51.100.9", "127.0.0.53"}),
		questions(plainKinds, []string{"2001:db8:100::53"})...)

	t.Run("the innermost is asked for", func(t *testing.T) {
		answered(t, innerIndex, asked, ask(t, nil, inner, asked...))
		answered(t, middleIndex, asked, ask(t, nil, middle, asked...))
		answered(t, outerIndex, asked, ask(t, nil, outer, asked...))
	})
	t.Run("its own address too", func(t *testing.T) {
		asked := explicit(d.DNSAddress(innerID))
		answered(t, innerIndex, asked, ask(t, nil, inner, asked...))
	})
	t.Run("nobody else's address", func(t *testing.T) {
		for cg, addresses := range map[*testenv.Cgroup][]string{
			inner:  {d.DNSAddress(middleID), d.DNSAddress(outerID)},
			middle: {d.DNSAddress(innerID), d.DNSAddress(outerID)},
			outer:  {d.DNSAddress(innerID), d.DNSAddress(middleID)},
		} {
			for _, address := range addresses {
				asked := explicit(address)
				unanswered(t, asked, ask(t, nil, cg, asked...), unix.EPERM)
			}
		}
	})
	t.Run("the innermost that intercepts", func(t *testing.T) {
		replace(t, d, innerID, without())
		answered(t, middleIndex, asked[:3], ask(t, nil, inner, asked[:3]...))
		replace(t, d, middleID, without())
		answered(t, outerIndex, asked[:3], ask(t, nil, inner, asked[:3]...))
		answered(t, outerIndex, asked[6:9], ask(t, nil, outer, asked[6:9]...))

		// What does not intercept judges by its rules.
		replace(t, d, innerID, &policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSDisabled}})
		unanswered(t, asked[:3], ask(t, nil, inner, asked[:3]...), unix.EPERM)
		loopback := questions(plainKinds, []string{"127.0.0.53"})
		unanswered(t, loopback, ask(t, nil, inner, briefly(loopback)...), unix.EPERM, unix.EAGAIN, unix.EINPROGRESS)
	})
	escaped(t, outside, nil, outer)
}

// explicit asks a DNS address itself.
func explicit(address string) []question {
	var all []question
	for _, kind := range append(plainKinds, mappedKinds...) {
		all = append(all, question{Kind: kind, Servers: []netip.AddrPort{netip.MustParseAddrPort(address)}})
	}
	return all
}

// A socket outlives the attachment that has turned it, and another attachment
// takes the index that it was turned to.
func TestRecycledIndex(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	cg := testenv.NewCgroup(t)
	d := openWith(t, datapath.Config{Dir: filepath.Join(testenv.BPFFS(t), "netfence"), MaxAttachments: 1})
	front(t, intercept.OpenCgroups, d)
	firstID, first := attach(t, d, cgroupTarget(t, cg), everywhere())
	asked := question{Kind: "tcp", Servers: []netip.AddrPort{port53("9.9.9.9"), port53("9.9.9.9")}, Wait: true, Brief: true}
	var second uint32
	all := askAround(t, nil, cg, func() {
		if err := d.Detach(firstID); err != nil {
			t.Fatal(err)
		}
		_, second = attach(t, d, cgroupTarget(t, cg), everywhere())
	}, asked)
	if first != second {
		t.Fatalf("index %d, then %d: not the case that this test is for", first, second)
	}
	if o := all[0][0]; o.Answer.Index != first {
		t.Errorf("before: %+v", o)
	}
	// The connection is there, but its packets go nowhere.
	if o := all[0][1]; o.Answer.Text != "" || o.Errno == 0 {
		t.Errorf("after: %+v, want no answer", o)
	}
}
