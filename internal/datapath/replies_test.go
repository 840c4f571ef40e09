// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/policy"
)

const (
	workload = "10.0.0.2"
	peer     = "198.51.100.99"
)

func inbound(proto byte, payload []byte) []byte {
	return frame(ipv4{src: peer, dst: workload, proto: proto}.packet(payload), etherIPv4)
}

func outbound(proto byte, payload []byte) []byte {
	return frame(ipv4{src: workload, dst: peer, proto: proto}.packet(payload), etherIPv4)
}

func TestReplies(t *testing.T) {
	open80 := inbound(protoTCP, tcp(5000, 80, flagSYN))
	for _, tt := range []struct {
		name    string
		in, out []byte
		passes  bool
	}{
		{"syn-ack", open80, outbound(protoTCP, tcp(80, 5000, flagSYN|flagACK)), true},
		{"data", open80, outbound(protoTCP, tcp(80, 5000, flagACK)), true},
		{"nothing came in", nil, outbound(protoTCP, tcp(80, 5000, flagSYN|flagACK)), false},
		{"bare syn back", open80, outbound(protoTCP, tcp(80, 5000, flagSYN)), false},
		{"another remote port", open80, outbound(protoTCP, tcp(80, 5001, flagACK)), false},
		{"another local port", open80, outbound(protoTCP, tcp(81, 5000, flagACK)), false},
		{"udp to the same ports", open80, outbound(protoUDP, udp(80, 5000)), false},
		{"a fragment", open80, frame(ipv4{src: workload, dst: peer, proto: protoTCP, frag: 3}.packet(tcp(80, 5000, flagACK)), etherIPv4), false},
		{"ack came in, not syn", inbound(protoTCP, tcp(5000, 80, flagACK)), outbound(protoTCP, tcp(80, 5000, flagACK)), false},
		{"syn-ack came in", inbound(protoTCP, tcp(5000, 80, flagSYN|flagACK)), outbound(protoTCP, tcp(80, 5000, flagACK)), false},
		{"syn from port 53", inbound(protoTCP, tcp(53, 80, flagSYN)), outbound(protoTCP, tcp(80, 53, flagSYN|flagACK)), false},
		{"syn from loopback", frame(ipv4{src: "127.0.0.1", dst: workload, proto: protoTCP}.packet(tcp(5000, 80, flagSYN)), etherIPv4),
			frame(ipv4{src: workload, dst: "127.0.0.1", proto: protoTCP}.packet(tcp(80, 5000, flagACK)), etherIPv4), false},
		{"udp came in", inbound(protoUDP, udp(5000, 80)), outbound(protoUDP, udp(80, 5000)), false},
		{"echo reply", inbound(protoICMP, icmp(8, 77)), outbound(protoICMP, icmp(0, 77)), true},
		{"echo reply of another id", inbound(protoICMP, icmp(8, 77)), outbound(protoICMP, icmp(0, 78)), false},
		{"echo request back", inbound(protoICMP, icmp(8, 77)), outbound(protoICMP, icmp(8, 77)), false},
		{"echo reply came in", inbound(protoICMP, icmp(0, 77)), outbound(protoICMP, icmp(0, 77)), false},
		{"echo to a group", frame(ipv4{src: "224.0.0.9", dst: workload, proto: protoICMP}.packet(icmp(8, 1)), etherIPv4),
			frame(ipv4{src: workload, dst: "224.0.0.9", proto: protoICMP}.packet(icmp(0, 1)), etherIPv4), false},
		{"echo reply over ipv6", frame(ipv6{src: "2001:db8::9", dst: "fd00::2", proto: protoICMPv6}.packet(icmp(128, 5)), etherIPv6),
			frame(ipv6{src: "fd00::2", dst: "2001:db8::9", proto: protoICMPv6}.packet(icmp(129, 5)), etherIPv6), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t, pinDir(t))
			tg := vethTarget(t, "v0")
			id := attach(t, d, tg)
			replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist})
			if tt.in != nil {
				if got := run(t, d.bpf.NfInL2, tg, tt.in); got != passed {
					t.Fatalf("inbound: verdict %#x, want pass", got)
				}
			}
			want := uint32(dropped)
			if tt.passes {
				want = passed
			}
			if got := run(t, d.bpf.NfOutL2, tg, tt.out); got != want {
				t.Errorf("outbound: verdict %#x, want %#x", got, want)
			}
		})
	}
}

// flows counts the reply flows of an attachment, twice: as the programs count
// them and as they are.
func flows(t *testing.T, d *Datapath, id string) int {
	t.Helper()
	a := d.known[id]
	var counted uint64
	if err := d.bpf.NfFlowCounts.Lookup(a.index, &counted); err != nil {
		t.Fatal(err)
	}
	var n int
	var key bpfFlowKey
	var flow bpfFlow
	for it := d.bpf.NfFlows.Iterate(); it.Next(&key, &flow); {
		if key.Incarnation == a.record.Incarnation {
			n++
		}
	}
	if uint64(n) != counted {
		t.Fatalf("%d flows, but %d counted", n, counted)
	}
	return n
}

func TestReplyFlowsEnd(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	allowlist := &policy.Policy{Mode: policy.ModeAllowlist}
	deny := &policy.Policy{Mode: policy.ModeAllowlist, Deny: []policy.Rule{rule(peer + "/32")}}
	noReplies := &policy.Policy{Mode: policy.ModeAllowlist, Replies: policy.RepliesDeny}
	replace(t, d, id, allowlist)

	begin := func() {
		t.Helper()
		run(t, d.bpf.NfInL2, tg, inbound(protoTCP, tcp(5000, 80, flagSYN)))
		if n := flows(t, d, id); n != 1 {
			t.Fatalf("%d flows after a SYN, want 1", n)
		}
	}
	answer := outbound(protoTCP, tcp(80, 5000, flagACK))
	ended := func(why string) {
		t.Helper()
		if n := flows(t, d, id); n != 0 {
			t.Errorf("%s: %d flows are left", why, n)
		}
		if got := run(t, d.bpf.NfOutL2, tg, answer); got != dropped {
			t.Errorf("%s: the answer still passes", why)
		}
	}

	begin()
	run(t, d.bpf.NfInL2, tg, inbound(protoTCP, tcp(5000, 80, flagRST)))
	ended("reset by the peer")

	begin()
	if got := run(t, d.bpf.NfOutL2, tg, outbound(protoTCP, tcp(80, 5000, flagRST))); got != passed {
		t.Errorf("reset by the workload: verdict %#x, want pass", got)
	}
	ended("reset by the workload")

	begin()
	replace(t, d, id, deny)
	replace(t, d, id, allowlist)
	ended("peer denied for a while")

	begin()
	replace(t, d, id, noReplies)
	replace(t, d, id, allowlist)
	ended("replies denied for a while")

	begin()
	replace(t, d, id, policy.BlockAll())
	replace(t, d, id, allowlist)
	ended("block-all for a while")

	begin()
	expireFlows(t, d)
	if got := run(t, d.bpf.NfOutL2, tg, answer); got != dropped {
		t.Error("expired, not swept: the answer still passes")
	}
	run(t, d.bpf.NfInL2, tg, inbound(protoTCP, tcp(5000, 80, flagACK)))
	if got := run(t, d.bpf.NfOutL2, tg, answer); got != dropped {
		t.Error("expired, then an ACK came in: the flow came back to life")
	}
	if err := d.endFlows(0); err != nil {
		t.Fatal(err)
	}
	ended("expired")
}

// A daemon can die between a policy and the end of the flows that it denies.
func TestOpenEndsDeniedReplyFlows(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	tg := vethTarget(t, "v0")
	id := attachOnly(t, d, tg)
	allowlist := &policy.Policy{Mode: policy.ModeAllowlist}
	replace(t, d, id, allowlist)
	run(t, d.bpf.NfInL2, tg, inbound(protoTCP, tcp(5000, 80, flagSYN)))
	if err := d.close(d.known[id]); err != nil { // as far as Replace got
		t.Fatal(err)
	}
	if n := flows(t, d, id); n != 1 {
		t.Fatalf("%d flows, want 1", n)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = open(t, dir)
	replace(t, d, id, allowlist)
	if got := run(t, d.bpf.NfOutL2, tg, outbound(protoTCP, tcp(80, 5000, flagACK))); got != dropped {
		t.Error("a flow that was denied before the crash is back")
	}
	if n := flows(t, d, id); n != 0 {
		t.Errorf("%d flows are left", n)
	}
	if err := d.Detach(id); err != nil {
		t.Error(err)
	}
}

func expireFlows(t *testing.T, d *Datapath) {
	t.Helper()
	var keys []bpfFlowKey
	var key bpfFlowKey
	var flow bpfFlow
	it := d.bpf.NfFlows.Iterate()
	for it.Next(&key, &flow) {
		keys = append(keys, key)
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if err := d.bpf.NfFlows.Lookup(&k, &flow); err != nil {
			t.Fatal(err)
		}
		flow.Deadline = 1
		if err := d.bpf.NfFlows.Update(&k, &flow, ebpf.UpdateExist); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReplyFlowsAreBounded(t *testing.T) {
	d, err := openRenewed(Config{Dir: pinDir(t), MaxFlows: 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	one, two := vethTarget(t, "v0"), vethTarget(t, "v1")
	first, second := attach(t, d, one), attach(t, d, two)
	replace(t, d, first, &policy.Policy{Mode: policy.ModeAllowlist})
	replace(t, d, second, &policy.Policy{Mode: policy.ModeAllowlist})
	for port := range 50 {
		run(t, d.bpf.NfInL2, one, inbound(protoTCP, tcp(5000+port, 80, flagSYN)))
	}
	if n := flows(t, d, first); n != 10 {
		t.Errorf("%d flows, want 10", n)
	}
	run(t, d.bpf.NfInL2, two, inbound(protoTCP, tcp(5000, 80, flagSYN)))
	if n := flows(t, d, second); n != 1 {
		t.Errorf("another attachment has %d flows, want 1", n)
	}
}

// A packet in flight through a detach may note a flow that nobody ends. Whoever
// is next at the index must not have it counted off its own.
func TestAFlowOfBeforeIsNobodysRoom(t *testing.T) {
	d, err := openRenewed(Config{Dir: pinDir(t), MaxAttachments: 1, MaxFlows: 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	target := vethTarget(t, "v0")
	first := attach(t, d, target)
	index, _ := d.Index(first)
	replace(t, d, first, &policy.Policy{Mode: policy.ModeAllowlist})
	run(t, d.bpf.NfInL2, target, inbound(protoTCP, tcp(5000, 80, flagSYN)))
	var key bpfFlowKey
	var straggler bpfFlow
	if !d.bpf.NfFlows.Iterate().Next(&key, &straggler) {
		t.Fatal("no flow")
	}
	if err := d.Detach(first); err != nil {
		t.Fatal(err)
	}
	straggler.Deadline = 1
	if err := d.bpf.NfFlows.Put(&key, &straggler); err != nil {
		t.Fatal(err)
	}
	second := attach(t, d, target)
	if again, ok := d.Index(second); !ok || again != index {
		t.Fatalf("index %d, want %d again", again, index)
	}
	replace(t, d, second, &policy.Policy{Mode: policy.ModeAllowlist})
	if err := d.endFlows(0); err != nil { // as the sweep does
		t.Fatal(err)
	}
	if d.bpf.NfFlows.Iterate().Next(&key, &straggler) {
		t.Error("the flow of before is still there")
	}
	if n := flows(t, d, second); n != 0 {
		t.Errorf("%d flows, want 0", n)
	}
	run(t, d.bpf.NfInL2, target, inbound(protoTCP, tcp(5000, 80, flagSYN)))
	if n := flows(t, d, second); n != 1 {
		t.Errorf("%d flows, want 1", n)
	}
}

// A datagram from outside to a listed port may be answered, for a minute after the last.
func TestRepliesUDP(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	serving := &policy.Policy{Mode: policy.ModeAllowlist, RepliesUDP: []policy.Ports{ports(5000, 5003, policy.UDP), ports(161, 161, policy.UDP)}}
	in := func(sport, dport int) { run(t, d.bpf.NfInL2, tg, inbound(protoUDP, udp(sport, dport))) }
	answer := func(when string, sport, dport int, want uint32) {
		t.Helper()
		verdict(t, d, tg, when, outbound(protoUDP, udp(sport, dport)), want)
	}
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist})
	in(4000, 161)
	answer("no port is listed", 161, 4000, dropped)

	replace(t, d, id, serving)
	answer("nothing came in", 161, 4000, dropped)
	in(4000, 161)
	in(4000, 5002)
	answer("the last listed", 161, 4000, passed)
	answer("in a range", 5002, 4000, passed)
	answer("to another port", 161, 4001, dropped)
	answer("from another port", 5001, 4000, dropped)
	in(4000, 162)
	answer("a port that is not listed", 162, 4000, dropped)
	in(53, 161)
	answer("to port 53", 161, 53, dropped)
	verdict(t, d, tg, "tcp", outbound(protoTCP, tcp(161, 4000, flagACK)), dropped)

	expireFlows(t, d)
	answer("a minute later", 161, 4000, dropped)
	in(4000, 161)
	answer("another datagram", 161, 4000, passed)
	deny := *serving
	deny.Deny = []policy.Rule{rule(peer + "/32")}
	replace(t, d, id, &deny)
	answer("the peer is denied", 161, 4000, dropped)
	replace(t, d, id, serving)
	answer("and no more, but the flow has ended", 161, 4000, dropped)
	in(4000, 161)
	narrower := &policy.Policy{Mode: policy.ModeAllowlist, RepliesUDP: []policy.Ports{ports(5000, 5003, policy.UDP)}}
	replace(t, d, id, narrower)
	replace(t, d, id, serving)
	answer("the port was taken away", 161, 4000, dropped)
}
