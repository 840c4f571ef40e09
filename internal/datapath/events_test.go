// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"reflect"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// heard collects what the datapath tells of.
type heard struct {
	d *Datapath

	mu   sync.Mutex
	all  []events.Event
	lost uint64
}

func (h *heard) add(e events.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost += e.Lost; e.Lost == 0 {
		h.all = append(h.all, e)
	}
}

// take returns what was dropped and lost before the call, and forgets it.
func (h *heard) take(t testing.TB) (all []events.Event, lost uint64) {
	t.Helper()
	if err := h.d.DrainEvents(); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	all, lost = h.all, h.lost
	h.all, h.lost = nil, 0
	return all, lost
}

func openHearing(t testing.TB, cfg Config) (*Datapath, *heard) {
	t.Helper()
	h := &heard{}
	cfg.Events = h.add
	d := openWith(t, cfg)
	h.d = d
	return d, h
}

func flowOf(source, destination string, protocol uint8, length int, reason string) *events.DeniedFlow {
	f := &events.DeniedFlow{Protocol: protocol, Length: length, Reason: reason}
	if source != "" {
		f.Source = netip.MustParseAddrPort(source)
	}
	if destination != "" {
		f.Destination = netip.MustParseAddrPort(destination)
	}
	return f
}

func TestDropsOfAnInterfaceAreToldOf(t *testing.T) {
	d, h := openHearing(t, Config{Dir: pinDir(t)})
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, packetPolicy())
	check := func(name string, packet []byte, want *events.DeniedFlow) {
		t.Helper()
		before := time.Now()
		verdict := run(t, d.bpf.NfOutL2, tg, packet)
		got, lost := h.take(t)
		if want == nil {
			if verdict != passed || len(got) > 0 {
				t.Errorf("%s: verdict %#x, told of %+v", name, verdict, got)
			}
			return
		}
		if verdict != dropped || len(got) != 1 || lost != 0 {
			t.Fatalf("%s: verdict %#x, told of %+v, lost %d", name, verdict, got, lost)
		}
		e := got[0]
		if e.Attachment != id || !reflect.DeepEqual(e.Flow, want) {
			t.Errorf("%s:\ngot  %s %+v\nwant %s %+v", name, e.Attachment, e.Flow, id, want)
		}
		// The clock on the wall may be set meanwhile, but not by the test.
		if e.Time.Before(before.Add(-time.Second)) || e.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("%s: at %v, now %v", name, e.Time, before)
		}
	}
	check("allowed", udp4("192.0.2.1", 9), nil)
	check("udp", udp4("10.9.9.9", 9), flowOf("10.0.0.2:4000", "10.9.9.9:9", protoUDP, 64, "no-rule"))
	denied := flowOf("10.0.0.2:4000", "192.0.2.129:443", protoTCP, 64, "deny-rule")
	denied.Rule = "deny 192.0.2.128/25"
	check("tcp", tcp4("192.0.2.129", 443), denied)
	check("tcp, again", tcp4("192.0.2.129", 443), denied)
	check("icmp", frame(ipv4{dst: "10.9.9.9", proto: protoICMP}.packet(icmp(8, 7)), etherIPv4),
		flowOf("10.0.0.2:0", "10.9.9.9:0", protoICMP, 64, "no-rule"))
	check("v6", udp6("2001:db9::1", 9), flowOf("[fd00::2]:4000", "[2001:db9::1]:9", protoUDP, 64, "no-rule"))
	check("later fragment", frame(ipv4{dst: "10.9.9.9", proto: protoUDP, frag: 3}.packet(udp(1, 2)), etherIPv4),
		flowOf("10.0.0.2:0", "10.9.9.9:0", protoUDP, 64, "no-rule"))
	check("not ip", frame(make([]byte, 28), 0x88cc), flowOf("", "", 0, 64, "not-ip"))

	replace(t, d, id, policy.BlockAll())
	check("block-all", udp4("192.0.2.1", 9), flowOf("10.0.0.2:4000", "192.0.2.1:9", protoUDP, 64, "block-all"))

	// Somebody else's interface has a filter that knows nobody: counted, and nobody to tell of.
	other := vethTarget(t, "v1")
	if verdict := run(t, d.bpf.NfOutL2, other, udp4("192.0.2.1", 9)); verdict != dropped {
		t.Errorf("unattached: verdict %#x", verdict)
	}
	if got, _ := h.take(t); len(got) > 0 {
		t.Errorf("unattached: told of %+v", got)
	}
}

func TestDropsOfACgroupAreToldOf(t *testing.T) {
	dir, cg, ns, outside := pinDir(t), testenv.NewCgroup(t), testenv.NewNS(t), testenv.NewNS(t)
	tg, err := target.ResolveCgroup(cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Veth(t, testenv.End{NS: ns, Name: "d0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.1/24")}},
		testenv.End{NS: outside, Name: "d0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.5.0.2/24")}})
	ns.Route(t, netip.MustParsePrefix("0.0.0.0/0"), netip.Addr{}, "d0")
	before, err := openRenewed(Config{Dir: dir, Events: func(events.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	id := attachOnly(t, before, tg)
	replace(t, before, id, &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("10.5.0.0/24")}})
	w := testenv.StartWorkload(t, ns, cg)
	// What is dropped before the next daemon is there is counted, and no news to it.
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	w.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: netip.MustParseAddrPort("198.51.100.8:9")})
	d, told := openHearing(t, Config{Dir: dir})
	t.Cleanup(func() {
		if err := d.Detach(id); err != nil {
			t.Error(err)
		}
	})
	only := func(p testenv.Probe) *events.DeniedFlow {
		t.Helper()
		out := w.Probe(t, p)
		got, lost := told.take(t)
		if len(got) != 1 || lost != 0 || got[0].Attachment != id {
			t.Fatalf("%s: %s, told of %+v, lost %d", p.Kind, out, got, lost)
		}
		return got[0].Flow
	}
	to := netip.MustParseAddrPort("198.51.100.9:4433")
	for _, kind := range []testenv.ProbeKind{testenv.TCP, testenv.UDPSendto} {
		protocol := map[testenv.ProbeKind]uint8{testenv.TCP: protoTCP, testenv.UDPSendto: protoUDP}[kind]
		if got, want := only(testenv.Probe{Kind: kind, To: to}), flowOf("", to.String(), protocol, 0, "no-rule"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", kind, got, want)
		}
	}
	got := only(testenv.Probe{Kind: testenv.Echo, To: to})
	if got.Protocol != protoICMP || got.Length < 28 || got.Reason != "no-rule" ||
		got.Source != netip.MustParseAddrPort("10.5.0.1:0") || got.Destination != netip.MustParseAddrPort("198.51.100.9:0") {
		t.Errorf("echo: %+v", got)
	}
	if counters, err := d.Counters(id); err != nil || counters.Drops["no-rule"] != 4 {
		t.Errorf("counted %+v, %v; want the three, and one before", counters, err)
	}
}

func TestEventsAreLimited(t *testing.T) {
	const rate, sent = 10, 500
	d, h := openHearing(t, Config{Dir: pinDir(t), EventRate: rate})
	loud, quiet := vethTarget(t, "v0"), vethTarget(t, "v1")
	loudID, quietID := attach(t, d, loud), attach(t, d, quiet)
	before := time.Now()
	for range sent {
		run(t, d.bpf.NfOutL2, loud, udp4("10.9.9.9", 9))
	}
	run(t, d.bpf.NfOutL2, quiet, udp4("10.9.9.9", 9))
	got, lost := h.take(t)
	spent := int(time.Since(before).Seconds()*rate) + 1
	last := got[len(got)-1]
	if last.Attachment != quietID {
		t.Errorf("the quiet one is not told of, but %+v", last)
	}
	got = got[:len(got)-1]
	for _, e := range got {
		if e.Attachment != loudID {
			t.Errorf("told of %s", e.Attachment)
		}
	}
	if len(got) < rate || len(got) > rate+spent || uint64(len(got))+lost != sent {
		t.Errorf("told of %d and lost %d of %d, want %d and up to %d more", len(got), lost, sent, rate, spent)
	}
	// With time the bucket fills, and what is lost is told once.
	testenv.Eventually(t, "another event", func() bool {
		run(t, d.bpf.NfOutL2, loud, udp4("10.9.9.9", 9))
		got, _ := h.take(t)
		return len(got) > 0
	})
	if _, lost := h.take(t); lost != 0 {
		t.Errorf("lost %d again", lost)
	}
}

// What was lost is told of also when nothing follows that could carry it.
func TestLostEventsAreToldOfWithoutFurtherOnes(t *testing.T) {
	d, h := openHearing(t, Config{Dir: pinDir(t), EventRate: 1})
	tg := vethTarget(t, "v0")
	attach(t, d, tg)
	for range 50 {
		run(t, d.bpf.NfOutL2, tg, udp4("10.9.9.9", 9))
	}
	testenv.Eventually(t, "50 events told or lost", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.lost >= 45 && h.lost+uint64(len(h.all)) == 50
	})
}

// A listener that does not listen loses events; packets are judged and counted all the same.
func TestNobodyWaitsForAListener(t *testing.T) {
	const sent = 20_000
	var (
		h       heard
		stuck   = make(chan struct{})
		entered = make(chan struct{})
		once    sync.Once
	)
	d := openWith(t, Config{Dir: pinDir(t), EventRate: 1e9, Events: func(e events.Event) {
		once.Do(func() { close(entered) })
		<-stuck
		h.add(e)
	}})
	h.d = d
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	run(t, d.bpf.NfOutL2, tg, udp4("10.9.9.9", 9))
	<-entered
	for range sent {
		if verdict := run(t, d.bpf.NfOutL2, tg, udp4("10.9.9.9", 9)); verdict != dropped {
			t.Fatalf("verdict %#x", verdict)
		}
	}
	if c, err := d.Counters(id); err != nil || c.PacketsDropped != sent+1 {
		t.Errorf("counted %+v, %v; want %d", c, err, sent+1)
	}
	close(stuck)
	got, lost := h.take(t)
	if lost == 0 || uint64(len(got))+lost != sent+1 {
		t.Errorf("told of %d, lost %d, want %d in all and some lost", len(got), lost, sent+1)
	}
}

func TestEventsOfAnEndedAttachmentAreNobodys(t *testing.T) {
	d, h := openHearing(t, Config{Dir: pinDir(t), MaxAttachments: 1})
	tg := vethTarget(t, "v0")
	id := attachOnly(t, d, tg)
	index, was := d.known[id].index, identity(d.known[id])
	if err := d.Detach(id); err != nil {
		t.Fatal(err)
	}
	again := attach(t, d, tg)
	if d.known[again].index != index {
		t.Fatalf("index %d, want %d again", d.known[again].index, index)
	}
	w := &witness{d: d, known: make(map[uint32]*source)}
	if s := w.source(was); s != nil {
		t.Errorf("the ended attachment is %+v", s)
	}
	run(t, d.bpf.NfOutL2, tg, udp4("10.9.9.9", 9))
	if got, _ := h.take(t); len(got) != 1 || got[0].Attachment != again {
		t.Errorf("told of %+v, want one of %s", got, again)
	}
}

func TestEventsThatMakeNoSense(t *testing.T) {
	d := open(t, pinDir(t))
	id := attach(t, d, vethTarget(t, "v0"))
	var got []events.Event
	w := &witness{d: d, known: make(map[uint32]*source), publish: func(e events.Event) { got = append(got, e) }}
	record := func(change func(*bpfEvent)) []byte {
		e := bpfEvent{Identity: identity(d.known[id]), Reason: uint8(bpfReasonREASON_RULE)}
		change(&e)
		return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e))...)
	}
	whole := record(func(*bpfEvent) {})
	for n := range whole {
		w.hear(whole[:n])
	}
	w.hear(append(whole, 0))
	w.hear(record(func(e *bpfEvent) { e.Reason = 0 }))
	w.hear(record(func(e *bpfEvent) { e.Reason = 200 }))
	if want := uint64(len(whole) + 3); w.malformed != want || len(got) > 0 {
		t.Errorf("%d not understood, told of %+v; want %d and none", w.malformed, got, want)
	}
	w.hear(record(func(e *bpfEvent) { e.Identity = uint64(maxAttachments) | 1<<32 }))
	w.hear(record(func(e *bpfEvent) { e.Identity++ }))
	w.hear(record(func(e *bpfEvent) { e.Identity = 0 }))
	if len(got) > 0 {
		t.Errorf("told of nobody's %+v", got)
	}
	w.hear(whole)
	if len(got) != 1 || got[0].Attachment != id || !reflect.DeepEqual(*got[0].Flow, events.DeniedFlow{Reason: "deny-rule"}) {
		t.Errorf("told of %+v, want one without addresses", got)
	}
}

func TestClosedDatapathDrainsNothing(t *testing.T) {
	d, err := openRenewed(Config{Dir: pinDir(t), Events: func(events.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.DrainEvents(); err == nil {
		t.Error("drained after Close")
	}
}

// A flood from a real cgroup, at full speed, with a listener: every datagram is
// counted, and each is either told of or lost.
func TestFloodIsToldOfOrLost(t *testing.T) {
	d, h := openHearing(t, Config{Dir: pinDir(t)})
	cg, ns := testenv.NewCgroup(t), testenv.NewNS(t)
	tg, err := target.ResolveCgroup(cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	id := attach(t, d, tg)
	w := testenv.StartWorkload(t, ns, cg)
	out := w.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: netip.MustParseAddrPort("198.51.100.9:9"), Count: 20_000})
	if out.Sent != 0 || out.Errno != unix.EPERM {
		t.Errorf("flood: %s", out)
	}
	got, lost := h.take(t)
	c, err := d.Counters(id)
	if err != nil || c.PacketsDropped != 20_000 || uint64(len(got))+lost != c.PacketsDropped || lost == 0 {
		t.Errorf("told of %d, lost %d, counted %+v, %v", len(got), lost, c, err)
	}
}
