// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// onOneProcessor keeps the test, and with it the programs that it runs, where they
// are: what one processor has found out no other knows.
func onOneProcessor(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := range len(before) * 64 {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Errorf("processors of the thread: %v", err)
		}
		runtime.UnlockOSThread()
	})
}

// rulings edits what processors have found out. It returns how many entries there were.
func rulings(t *testing.T, d *Datapath, edit func(*bpfRuling)) (found int) {
	t.Helper()
	for place := range uint32(bpfLimitMAX_RULINGS) {
		perCPU := make([]bpfRuling, ebpf.MustPossibleCPU())
		if err := d.bpf.NfRulings.Lookup(place, &perCPU); err != nil {
			t.Fatal(err)
		}
		changed := false
		for i := range perCPU {
			if perCPU[i].Word != 0 {
				found++
				edit(&perCPU[i])
				changed = true
			}
		}
		if !changed {
			continue
		}
		if err := d.bpf.NfRulings.Put(place, perCPU); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// Each thing that a remembered ruling is for must be that of the packet; the last
// case shows that the tampering is what a program would believe.
func TestRulingsAreForOnePolicyAndDestination(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	denied := udp4("192.0.2.129", 9)
	for _, tt := range []struct {
		name    string
		edit    func(*bpfRuling)
		verdict uint32
	}{
		{"being written", func(r *bpfRuling) { r.Sequence |= 1 }, dropped},
		{"of another policy", func(r *bpfRuling) { r.Word += 1 << 32 }, dropped},
		{"of another attachment", func(r *bpfRuling) { r.Incarnation++ }, dropped},
		{"of another address", func(r *bpfRuling) { r.Address.Word[3]++ }, dropped},
		{"of another port", func(r *bpfRuling) { r.Port++ }, dropped},
		{"of another protocol", func(r *bpfRuling) { r.Protocol = protoTCP }, dropped},
		{"its own", func(*bpfRuling) {}, passed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onOneProcessor(t)
			rulings(t, d, func(r *bpfRuling) { *r = bpfRuling{} })
			replace(t, d, id, packetPolicy())
			verdict(t, d, tg, "unknown", denied, dropped)
			verdict(t, d, tg, "known", denied, dropped)
			if n := rulings(t, d, func(r *bpfRuling) {
				r.Reason = uint8(bpfReasonREASON_NONE)
				tt.edit(r)
			}); n == 0 {
				t.Fatal("nothing is remembered")
			}
			verdict(t, d, tg, "tampered with", denied, tt.verdict)
		})
	}
}

// A ruling is taken for the verdict on a packet that leaves, with all that comes
// before the rules. Who asks the rules about something else must note nothing: the
// peer of a flow through lo, say, is at 127.0.0.1, which no packet on another device
// may be addressed to, whatever the rules say.
func TestOnlyWhatLeavesIsRemembered(t *testing.T) {
	onOneProcessor(t)
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, &policy.Policy{
		Mode: policy.ModeDenylist, DNS: policy.DNS{Mode: policy.DNSDisabled}, Deny: []policy.Rule{rule("10.0.0.0/8")},
	})
	a := d.known[id]
	key := bpfFlowKey{Incarnation: a.record.Incarnation, Loopback: 1, LocalPort: 7, RemotePort: 9}
	key.Protocol = protoTCP
	key.Local.Word = networkWords(netip.MustParseAddr("127.0.0.1"))
	key.Remote.Word = key.Local.Word
	flow := bpfFlow{Deadline: uint64(bootTime(t) + time.Hour), Owner: a.index | 7<<16}
	if err := errors.Join(d.bpf.NfFlows.Put(&key, &flow), d.bpf.NfFlowCounts.Put(a.index, uint64(1))); err != nil {
		t.Fatal(err)
	}
	if err := d.endFlows(0); err != nil {
		t.Fatal(err)
	}
	if err := d.bpf.NfFlows.Lookup(&key, &flow); err != nil {
		t.Fatalf("the flow was to be looked at, and kept: %v", err)
	}
	if n := rulings(t, d, func(*bpfRuling) {}); n != 0 {
		t.Errorf("%d rulings noted by a walk over the flows", n)
	}
	verdict(t, d, tg, "127.0.0.1 off lo", tcp4("127.0.0.1", 9), dropped)
	verdict(t, d, tg, "a packet that leaves", tcp4("192.0.2.1", 9), passed)
	if n := rulings(t, d, func(*bpfRuling) {}); n != 1 {
		t.Errorf("%d rulings noted by a packet that leaves, want 1", n)
	}
}

// What sockets ask at connect and sendmsg is no packet yet.
func TestSocketsNoteNothing(t *testing.T) {
	h := hostWithCgroup(t, &policy.Policy{Mode: policy.ModeAllowlist, Deny: []policy.Rule{rule("203.0.113.0/24")}})
	w := testenv.StartWorkload(t, h.ns, h.cg)
	for _, kind := range []testenv.ProbeKind{testenv.TCP, testenv.UDPSendto, testenv.UDPConnected} {
		if got := w.Probe(t, testenv.Probe{Kind: kind, To: netip.MustParseAddrPort("203.0.113.9:9")}); got.Errno != unix.EPERM {
			t.Errorf("%s: %s, want EPERM", kind, got)
		}
	}
	if n := rulings(t, h.d, func(*bpfRuling) {}); n != 0 {
		t.Errorf("%d rulings, want none", n)
	}
}

// A rule that ends by itself is looked at each time.
func TestTimedRulesAreNotRemembered(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	p := &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("192.0.2.0/24")}}
	p.Allow[0].TTL = 3600e9
	replace(t, d, id, p)
	verdict(t, d, tg, "first", udp4("192.0.2.1", 9), passed)
	verdict(t, d, tg, "second", udp4("192.0.2.1", 9), passed)
	if n := rulings(t, d, func(*bpfRuling) {}); n != 0 {
		t.Errorf("%d rulings, want none", n)
	}
}

// A pass is for one flow. What ends it ends at once, but for the grant's own end,
// which is its end too.
func TestPassesAreForOneFlow(t *testing.T) {
	onOneProcessor(t)
	d, tg, id := learnedWorkload(t, Config{})
	ack := toServer(protoTCP, tcp(4000, 443, flagACK))
	verdict(t, d, tg, "learned", ack, passed)
	if err := d.bpf.NfLearned.Delete(learnedKey(t, d)); err != nil { // so that only the pass lets it through
		t.Fatal(err)
	}
	flowless := func() {
		t.Helper()
		var key bpfFlowKey
		if err := d.bpf.NfFlows.NextKey(nil, &key); err != nil {
			t.Fatal(err)
		}
		if err := d.bpf.NfFlows.Delete(&key); err != nil {
			t.Fatal(err)
		}
	}
	flowless()
	verdict(t, d, tg, "the same flow", ack, passed)
	verdict(t, d, tg, "another source port", toServer(protoTCP, tcp(4001, 443, flagACK)), dropped)
	verdict(t, d, tg, "another port there", toServer(protoTCP, tcp(4000, 444, flagACK)), dropped)
	verdict(t, d, tg, "another protocol", toServer(protoUDP, udp(4000, 443)), dropped)
	verdict(t, d, tg, "a new connection", toServer(protoTCP, tcp(4000, 443, flagSYN)), dropped)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSAllowlist}})
	verdict(t, d, tg, "its name is cut", ack, dropped)
}

func learnedKey(t *testing.T, d *Datapath) *bpfLearnedKey {
	t.Helper()
	var key bpfLearnedKey
	if err := d.bpf.NfLearned.NextKey(nil, &key); err != nil {
		t.Fatal(err)
	}
	return &key
}
