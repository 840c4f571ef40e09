// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

const server = "203.0.113.1"

func toServer(proto byte, payload []byte) []byte {
	return frame(ipv4{src: workload, dst: server, proto: proto}.packet(payload), etherIPv4)
}

func fromServer(proto byte, payload []byte) []byte {
	return frame(ipv4{src: server, dst: workload, proto: proto}.packet(payload), etherIPv4)
}

// learnedWorkload is an attachment that has learned the server's address.
func learnedWorkload(t *testing.T, cfg Config) (*Datapath, target.Target, string) {
	t.Helper()
	cfg.Dir = pinDir(t)
	d := openWith(t, cfg)
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	replace(t, d, id, domains(domain("a.example"), domain("b.example")))
	learn(t, d, id, "a.example", time.Hour, server)
	return d, tg, id
}

func TestLearnedFlowsGoOn(t *testing.T) {
	ack := toServer(protoTCP, tcp(4000, 443, flagACK))
	syn := toServer(protoTCP, tcp(4000, 443, flagSYN))
	for _, tt := range []struct {
		name    string
		open    [][]byte // while the address is open
		after   []byte
		passes  bool
		noFlows bool
	}{
		{"tcp", [][]byte{syn, ack}, ack, true, false},
		{"tcp, the handshake meets the end", [][]byte{syn}, ack, true, false},
		{"tcp, push", [][]byte{syn, ack}, toServer(protoTCP, tcp(4000, 443, flagACK|0x08)), true, false},
		{"syn-ack on it", [][]byte{syn, ack}, toServer(protoTCP, tcp(4000, 443, flagSYN|flagACK)), true, false},
		{"bare syn", [][]byte{syn, ack}, syn, false, false},
		{"syn with fin", [][]byte{syn, ack}, toServer(protoTCP, tcp(4000, 443, flagSYN|flagFIN)), false, false},
		{"another source port", [][]byte{syn, ack}, toServer(protoTCP, tcp(4001, 443, flagACK)), false, false},
		{"another port there", [][]byte{syn, ack}, toServer(protoTCP, tcp(4000, 444, flagACK)), false, false},
		{"another protocol", [][]byte{syn, ack}, toServer(protoUDP, udp(4000, 443)), false, false},
		{"another address", [][]byte{syn, ack}, frame(ipv4{src: workload, dst: "203.0.113.2", proto: protoTCP}.packet(tcp(4000, 443, flagACK)), etherIPv4), false, false},
		{"a later fragment", [][]byte{syn, ack}, frame(ipv4{src: workload, dst: server, proto: protoTCP, frag: 3}.packet(tcp(4000, 443, flagACK)), etherIPv4), false, false},
		{"reset by the workload", [][]byte{syn, ack, toServer(protoTCP, tcp(4000, 443, flagRST))}, ack, false, true},
		{"nothing before", nil, ack, false, true},
		{"udp", [][]byte{toServer(protoUDP, udp(4000, 443))}, toServer(protoUDP, udp(4000, 443)), true, false},
		{"udp to another port", [][]byte{toServer(protoUDP, udp(4000, 443))}, toServer(protoUDP, udp(4000, 444)), false, false},
		{"echo", [][]byte{toServer(protoICMP, icmp(8, 7))}, toServer(protoICMP, icmp(8, 7)), true, false},
		{"echo, another id", [][]byte{toServer(protoICMP, icmp(8, 7))}, toServer(protoICMP, icmp(8, 8)), false, false},
		{"esp", [][]byte{toServer(protoESP, make([]byte, 16))}, toServer(protoESP, make([]byte, 16)), true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, tg, id := learnedWorkload(t, Config{})
			for _, packet := range tt.open {
				verdict(t, d, tg, "while open", packet, passed)
			}
			if n := flows(t, d, id); (n == 0) != tt.noFlows {
				t.Errorf("%d flows", n)
			}
			expireGrants(t, d)
			want := uint32(dropped)
			if tt.passes {
				want = passed
			}
			verdict(t, d, tg, "after it expired", tt.after, want)
			if err := d.endFlows(0); err != nil {
				t.Fatal(err)
			}
			verdict(t, d, tg, "after the sweep", tt.after, want)
		})
	}
}

// editFlow changes the only flow there is, as time would.
func editFlow(t *testing.T, d *Datapath, edit func(*bpfFlow)) {
	t.Helper()
	var key bpfFlowKey
	var flow bpfFlow
	it := d.bpf.NfFlows.Iterate()
	if !it.Next(&key, &flow) {
		t.Fatal("no flow")
	}
	edit(&flow)
	if err := d.bpf.NfFlows.Update(&key, &flow, ebpf.UpdateExist); err != nil {
		t.Fatal(err)
	}
}

func flowDeadline(t *testing.T, d *Datapath) (left time.Duration) {
	t.Helper()
	editFlow(t, d, func(f *bpfFlow) { left = time.Duration(f.Deadline) - bootTime(t) })
	return left
}

func TestLearnedFlowsEnd(t *testing.T) {
	ack, datagram := toServer(protoTCP, tcp(4000, 443, flagACK)), toServer(protoUDP, udp(4000, 443))
	for _, tt := range []struct {
		name   string
		packet []byte
		cfg    Config
		end    func(t *testing.T, d *Datapath, tg target.Target, id string)
	}{
		{"idle", ack, Config{}, func(t *testing.T, d *Datapath, _ target.Target, _ string) { expireFlows(t, d) }},
		{"limit, tcp", ack, Config{MaxFlowTCP: time.Nanosecond}, nil},
		{"limit, udp", datagram, Config{MaxFlowOther: time.Nanosecond}, nil},
		{"reset by the peer", ack, Config{}, func(t *testing.T, d *Datapath, tg target.Target, _ string) {
			run(t, d.bpf.NfInL2, tg, fromServer(protoTCP, tcp(443, 4000, flagRST)))
		}},
		{"name cut", ack, Config{}, func(t *testing.T, d *Datapath, _ target.Target, id string) {
			replace(t, d, id, domains(domain("b.example")))
		}},
		{"denied by a rule", ack, Config{}, func(t *testing.T, d *Datapath, _ target.Target, id string) {
			p := domains(domain("a.example"))
			p.Deny = []policy.Rule{rule(server + "/32")}
			replace(t, d, id, p)
		}},
		{"denied by a rule, udp port", datagram, Config{}, func(t *testing.T, d *Datapath, _ target.Target, id string) {
			p := domains(domain("a.example"))
			p.Deny = []policy.Rule{rule(server+"/32", ports(443, 443, policy.UDP))}
			replace(t, d, id, p)
		}},
		{"block-all", ack, Config{}, func(t *testing.T, d *Datapath, _ target.Target, id string) { replace(t, d, id, policy.BlockAll()) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, tg, id := learnedWorkload(t, tt.cfg)
			verdict(t, d, tg, "while open", tt.packet, passed)
			expireGrants(t, d)
			if tt.end != nil {
				verdict(t, d, tg, "before", tt.packet, passed)
				tt.end(t, d, tg, id)
			}
			verdict(t, d, tg, "ended", tt.packet, dropped)
			if err := d.endFlows(0); err != nil {
				t.Fatal(err)
			}
			if n := flows(t, d, id); n != 0 {
				t.Errorf("%d flows are left", n)
			}
			replace(t, d, id, domains(domain("a.example"), domain("b.example")))
			verdict(t, d, tg, "ended, and the policy is back", tt.packet, dropped)
		})
	}
}

// TestFlowsOfOtherKeys stands for memory that is somebody else's flow by the time
// it is read.
func TestFlowsOfOtherKeys(t *testing.T) {
	ack := toServer(protoTCP, tcp(4000, 443, flagACK))
	for name, replace := range map[string]func(*bpfFlow){
		"attachment": func(f *bpfFlow) { f.Owner++ },
		"local port": func(f *bpfFlow) { f.Owner += 1 << 16 },
	} {
		t.Run(name, func(t *testing.T) {
			d, tg, _ := learnedWorkload(t, Config{})
			verdict(t, d, tg, "while open", ack, passed)
			expireGrants(t, d)
			verdict(t, d, tg, "its own", ack, passed)
			editFlow(t, d, replace)
			verdict(t, d, tg, "another's", ack, dropped)
		})
	}
}

func TestLearnedFlowsAreIdleByOutboundPackets(t *testing.T) {
	d, tg, _ := learnedWorkload(t, Config{})
	between := func(what string, least, most time.Duration) {
		t.Helper()
		if left := flowDeadline(t, d); left < least || left > most {
			t.Errorf("%s: %v left, want %v to %v", what, left, least, most)
		}
	}
	verdict(t, d, tg, "syn", toServer(protoTCP, tcp(4000, 443, flagSYN)), passed)
	between("syn", 50*time.Second, time.Minute)
	verdict(t, d, tg, "ack", toServer(protoTCP, tcp(4000, 443, flagACK)), passed)
	between("ack", 9*time.Minute, 10*time.Minute)
	editFlow(t, d, func(f *bpfFlow) { f.Deadline = uint64(bootTime(t) + 5*time.Second) })
	run(t, d.bpf.NfInL2, tg, fromServer(protoTCP, tcp(443, 4000, flagACK)))
	run(t, d.bpf.NfInL2, tg, fromServer(protoTCP, tcp(443, 4000, flagSYN)))
	if err := d.bpf.NfFlows.Delete(replyKey(t, d)); err != nil { // which the SYN has begun, and which would serve too
		t.Fatal(err)
	}
	between("inbound", 0, 5*time.Second)
	expireGrants(t, d)
	verdict(t, d, tg, "on the flow", toServer(protoTCP, tcp(4000, 443, flagACK)), passed)
	between("on the flow", 9*time.Minute, 10*time.Minute)
}

// replyKey finds the reply flow beside a learned one.
func replyKey(t *testing.T, d *Datapath) *bpfFlowKey {
	t.Helper()
	var key bpfFlowKey
	var flow bpfFlow
	for it := d.bpf.NfFlows.Iterate(); it.Next(&key, &flow); {
		if key.Learned == 0 {
			return &key
		}
	}
	t.Fatal("no reply flow")
	return nil
}

func TestLearnedFlowsAreBounded(t *testing.T) {
	d, tg, id := learnedWorkload(t, Config{MaxFlows: 5})
	datagram := func(port int) []byte { return toServer(protoUDP, udp(port, 443)) }
	for port := range 8 {
		verdict(t, d, tg, "while open", datagram(4000+port), passed)
	}
	if n := flows(t, d, id); n != 5 {
		t.Errorf("%d flows, want 5", n)
	}
	c, err := d.Counters(id)
	if err != nil || c.FlowsUnnoted != 3 {
		t.Errorf("%d flows not noted, %v; want 3", c.FlowsUnnoted, err)
	}
	expireGrants(t, d)
	verdict(t, d, tg, "noted", datagram(4004), passed)
	verdict(t, d, tg, "not noted", datagram(4005), dropped)
}

// A name that is learned again keeps its flows, whatever addresses it has by then.
func TestLearnedFlowsGoOnAsLongAsTheNameIsLearned(t *testing.T) {
	d, tg, id := learnedWorkload(t, Config{MaxFlowOther: 10 * time.Second})
	datagram := toServer(protoUDP, udp(4000, 443))
	verdict(t, d, tg, "while open", datagram, passed)
	expireGrants(t, d)
	a := d.known[id]
	for nameID, n := range a.memory.names {
		n.learned = 1 // at boot
		a.memory.names[nameID] = n
		if err := d.bpf.NfNames.Put(&bpfNameKey{Incarnation: a.record.Incarnation, Id: nameID}, kernelName(a.record.Incarnation, nameID, n)); err != nil {
			t.Fatal(err)
		}
	}
	verdict(t, d, tg, "learned long ago", datagram, dropped)
	learn(t, d, id, "a.example", time.Minute, "203.0.113.77")
	verdict(t, d, tg, "learned again elsewhere", datagram, passed)
}

// Two names teach one address. What one still justifies goes on when the other is cut.
func TestNamesShareAnAddress(t *testing.T) {
	d, tg, id := learnedWorkload(t, Config{})
	learn(t, d, id, "b.example", time.Hour, server)
	ack := toServer(protoTCP, tcp(4000, 443, flagACK))
	verdict(t, d, tg, "both", ack, passed)
	replace(t, d, id, domains(domain("b.example")))
	verdict(t, d, tg, "the first went", ack, passed)
	verdict(t, d, tg, "the first went, new", toServer(protoTCP, tcp(4001, 443, flagSYN)), passed)
	if list := d.Learned(id); len(list) != 1 || len(list[0].Names) != 1 || list[0].Names[0] != "b.example" {
		t.Errorf("learned %+v", list)
	}
	expireGrants(t, d)
	verdict(t, d, tg, "on the other's flow", ack, passed)
	replace(t, d, id, domains(domain("c.example")))
	verdict(t, d, tg, "both went", ack, dropped)
}

// A packet of an old policy may note a flow after the name is cut. It opens nothing.
func TestACutNameDoesNotComeBackByAFlow(t *testing.T) {
	d, tg, id := learnedWorkload(t, Config{})
	ack := toServer(protoTCP, tcp(4000, 443, flagACK))
	verdict(t, d, tg, "while open", ack, passed)
	var key bpfFlowKey
	var flow bpfFlow
	if !d.bpf.NfFlows.Iterate().Next(&key, &flow) {
		t.Fatal("no flow")
	}
	replace(t, d, id, domains(domain("b.example")))
	late := func() {
		t.Helper()
		if err := d.bpf.NfFlows.Put(&key, &flow); err != nil {
			t.Fatal(err)
		}
		if err := d.bpf.NfFlowCounts.Put(d.known[id].index, uint64(1)); err != nil {
			t.Fatal(err)
		}
	}
	late()
	verdict(t, d, tg, "cut", ack, dropped)
	replace(t, d, id, domains(domain("a.example")))
	late()
	learn(t, d, id, "a.example", time.Hour, "203.0.113.9")
	verdict(t, d, tg, "allowed and learned again", ack, dropped)
	if err := d.endFlows(0); err != nil {
		t.Fatal(err)
	}
	if n := flows(t, d, id); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

func TestLearnedFlowsKeepTheirName(t *testing.T) {
	d, tg, id := learnedWorkload(t, Config{})
	a := d.known[id]
	ack := toServer(protoTCP, tcp(4000, 443, flagACK))
	verdict(t, d, tg, "while open", ack, passed)
	learn(t, d, id, "b.example", time.Hour, "203.0.113.2")
	expireGrants(t, d)
	expireNames(a)
	sweep := func(names, grants int) {
		t.Helper()
		a.memory.mu.Lock()
		a.memory.due = 1
		a.memory.mu.Unlock()
		if err := d.sweepOnce(); err != nil {
			t.Fatal(err)
		}
		if n, g := lessonsOf(t, d, a.record.Incarnation); n != names || g != grants || len(a.memory.names) != names {
			t.Errorf("%d names (%d remembered) and %d grants, want %d and %d", n, len(a.memory.names), g, names, grants)
		}
	}
	sweep(1, 0)
	verdict(t, d, tg, "swept", ack, passed)
	expireFlows(t, d)
	sweep(0, 0)
	if a.memory.names != nil || a.memory.addrs != nil {
		t.Error("an empty memory holds on to its maps")
	}
	if n := flows(t, d, id); n != 0 {
		t.Errorf("%d flows", n)
	}
}
