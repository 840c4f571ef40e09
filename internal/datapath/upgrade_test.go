// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// abi1 is what the last build of ABI 1 loaded: maps and programs, as they were then.
func abi1(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	f, err := os.Open("testdata/abi1/bpf_bpfel.o.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	object, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// abi1Hooks are the pins of ABI 1, with the programs that they held.
var abi1Hooks = map[target.Type][]struct {
	name, program string
	attach        ebpf.AttachType
}{
	target.Interface: {
		{verdictHook, "nf_out_l2", ebpf.AttachTCXIngress},
		{"replies", "nf_in_l2", ebpf.AttachTCXEgress},
	},
	target.Cgroup: {
		{verdictHook, "nf_cg_egress", ebpf.AttachCGroupInetEgress},
		{"replies", "nf_cg_ingress", ebpf.AttachCGroupInetIngress},
		{"connect4", "nf_connect4", ebpf.AttachCGroupInet4Connect},
		{"connect6", "nf_connect6", ebpf.AttachCGroupInet6Connect},
		{"sendmsg4", "nf_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
		{"sendmsg6", "nf_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
		{"recvmsg4", "nf_recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
		{"recvmsg6", "nf_recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
		{"getpeername4", "nf_getpeername4", ebpf.AttachCgroupInet4GetPeername},
		{"getpeername6", "nf_getpeername6", ebpf.AttachCgroupInet6GetPeername},
		{"bind4", "nf_bind4", ebpf.AttachCGroupInet4Bind},
		{"bind6", "nf_bind6", ebpf.AttachCGroupInet6Bind},
	},
}

// abi1Daemon is one that has been: what it pinned is there, and nobody runs.
type abi1Daemon struct {
	pins pins
	coll *ebpf.Collection
	last uint32 // index and incarnation of the last attachment
}

func startABI1(t testing.TB, dir string) *abi1Daemon {
	t.Helper()
	o := &abi1Daemon{pins: pins(dir)}
	for _, sub := range []string{mapsDir, linksDir} {
		if err := os.MkdirAll(filepath.Join(o.pins.version(1), sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	o.coll, err = ebpf.NewCollectionWithOptions(abi1(t), ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: filepath.Join(o.pins.version(1), mapsDir)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// put writes to one of its maps.
func (o *abi1Daemon) put(t testing.TB, name string, key, value any) {
	t.Helper()
	if err := o.coll.Maps[name].Put(key, value); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// attach puts rules in force that are those of slot 1, and one address that a.example has taught.
func (o *abi1Daemon) attach(t testing.TB, tg target.Target, learned netip.Addr) string {
	t.Helper()
	id := newID()
	record, err := describe(id, tg)
	if err != nil {
		t.Fatal(err)
	}
	o.last++
	record.Incarnation = o.last
	a := &attachment{index: o.last, record: record}
	o.put(t, bpfMapNfMeta, uint32(0), uint64(o.last))
	o.put(t, bpfMapNfAttachments, a.index, &a.record)
	word := uint64(bpfModeMODE_ALLOWLIST) | uint64(bpfWordFlagWORD_REPLIES) | uint64(bpfWordFlagWORD_DNS) |
		1<<wordSlotShift | 7<<wordGenerationShift
	o.put(t, bpfMapNfWords, a.index, word)
	name := knownName{nameKey: nameKey{text: "a.example", grant: 1}, learned: bootTime(t)}
	o.put(t, bpfMapNfNames, &bpfNameKey{Incarnation: o.last, Id: 1}, kernelName(o.last, 1, name))
	key := bpfLearnedKey{Incarnation: o.last}
	key.Address.Word = networkWords(learned)
	o.put(t, bpfMapNfLearned, &key, kernelChunk(key, [grantsPerChunk]grant{{deadline: bootTime(t) + time.Hour, name: 1}}))
	if isInterface(record) {
		o.put(t, bpfMapNfInterfaces, &bpfInterfaceKey{Netns: record.Scope, Ifindex: record.Ifindex}, identity(a))
	}

	dir := filepath.Join(o.pins.version(1), linksDir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, h := range abi1Hooks[tg.Type] {
		var l link.Link
		var err error
		program := o.coll.Programs[h.program]
		if isInterface(record) {
			l, err = link.AttachTCX(link.TCXOptions{Interface: tg.Ifindex, Program: program, Attach: h.attach, Anchor: link.Head()})
		} else {
			l, err = link.AttachCgroup(link.CgroupOptions{Path: tg.Name, Attach: h.attach, Program: program})
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Pin(filepath.Join(dir, h.name)), l.Close()); err != nil {
			t.Fatal(err)
		}
		if h.name == verdictHook && !isInterface(record) {
			o.put(t, bpfMapNfCgroups, record.Scope, identity(a))
		}
	}
	return id
}

// rules fills slot 1.
func (o *abi1Daemon) rules(t testing.TB, p *policy.Policy) {
	t.Helper()
	table := compile(t, p).Table
	s := &slots{bpf: &bpfMaps{
		NfTables: o.coll.Maps[bpfMapNfTables], NfClauses: o.coll.Maps[bpfMapNfClauses], NfSlots: o.coll.Maps[bpfMapNfSlots],
	}}
	if err := s.build(1, table.Hash(), table); err != nil {
		t.Fatal(err)
	}
}

// kill leaves what is pinned.
func (o *abi1Daemon) kill() { o.coll.Close() }

// flood is what a workload sends without pause, and who watches what arrives.
type flood struct {
	to   netip.AddrPort
	stop func() int
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

// upgrade is a host with two attachments of a daemon of ABI 1 that was killed, and what flows there.
type upgrade struct {
	world              *testenv.World
	dir                string
	arrived            *testenv.Observer
	inside, job        *testenv.Workload
	ids                map[string]target.Target
	allowed, forbidden []flood
	conn               *testenv.Conn // from outside
	flows              int
}

// learnedAddr is what a.example has taught.
var learnedAddr = netip.MustParseAddr("203.0.113.5")

func newUpgrade(t *testing.T) *upgrade {
	t.Helper()
	u := &upgrade{dir: pinDir(t), world: testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)}
	veth, err := target.ResolveInterface(u.world.Link, target.Ingress, "")
	if err != nil {
		t.Fatal(err)
	}
	cg := testenv.NewCgroup(t)
	cgroup, err := target.ResolveCgroup(cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	u.arrived = testenv.Observe(t, u.world.Outside, "eth0")
	u.inside, u.job = testenv.StartWorkload(t, u.world.Workload, nil), testenv.StartWorkload(t, u.world.Host, cg)
	u.inside.Serve(t, 8080)

	old := startABI1(t, u.dir)
	t.Cleanup(func() {
		if err := RemoveAll(u.dir); err != nil {
			t.Error(err)
		}
	})
	old.rules(t, &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("198.51.100.0/24")}})
	u.ids = map[string]target.Target{old.attach(t, veth, learnedAddr): veth, old.attach(t, cgroup, learnedAddr): cgroup}
	for i, from := range []*testenv.Workload{u.inside, u.job} {
		port := []string{":1000", ":2000"}[i]
		u.allowed = append(u.allowed,
			startFlood(t, from, u.arrived, "198.51.100.7"+port, true), startFlood(t, from, u.arrived, learnedAddr.String()+port, true))
		u.forbidden = append(u.forbidden, startFlood(t, from, u.arrived, "203.0.113.6"+port, false))
	}
	u.conn = testenv.StartWorkload(t, u.world.Outside, nil).Connect(t, netip.AddrPortFrom(u.world.Addr4, 8080))
	if u.flows = entries[bpfFlowKey, bpfFlow](t, old.coll.Maps[bpfMapNfFlows]); u.flows < 3 {
		t.Fatalf("%d flows, want a learned one of each and a reply flow", u.flows)
	}
	old.kill()
	return u
}

// flowing waits until more of each has arrived.
func (u *upgrade) flowing(t *testing.T) {
	t.Helper()
	for _, f := range u.allowed {
		u.arrived.Await(t, u.arrived.Sum(t, toPort(f.to)).Count+1000, toPort(f.to))
	}
}

// check shows that d has all that the daemon of ABI 1 had.
func (u *upgrade) check(t *testing.T, d *Datapath) {
	t.Helper()
	for id, tg := range u.ids {
		if err := d.Attach(id, tg); err != nil {
			t.Errorf("%s: %v", tg.Name, err)
		}
		if got := d.known[id]; got == nil || got.record.Incarnation == 0 || generation(got.word) != 7 || got.slot == nil {
			t.Fatalf("%s: adopted as %+v", tg.Name, got)
		}
		if got := d.Learned(id); len(got) != 1 || got[0].Addr != learnedAddr || got[0].Names[0] != "a.example" {
			t.Errorf("%s: has learned %+v", tg.Name, got)
		}
		c, err := d.Counters(id)
		if err != nil || c.PacketsAllowed < 2000 || c.PacketsDropped == 0 || c.Drops["no-rule"] == 0 {
			t.Errorf("%s: counted %+v, %v", tg.Name, c, err)
		}
	}
	if got := entries[bpfFlowKey, bpfFlow](t, d.bpf.NfFlows); got < u.flows {
		t.Errorf("%d flows, %d before", got, u.flows)
	}
	if got := d.Problems(); len(got) > 0 {
		t.Errorf("problems: %q", got)
	}
}

// end shows that every allowed packet arrived, and no forbidden one.
func (u *upgrade) end(t *testing.T) {
	t.Helper()
	for _, f := range u.allowed {
		sent := f.stop()
		u.arrived.Await(t, sent, toPort(f.to))
		if got := u.arrived.Sum(t, toPort(f.to)); got.Count != sent {
			t.Errorf("%d of %d packets to %s arrived", got.Count, sent, f.to)
		}
	}
	for _, f := range u.forbidden {
		tried := f.stop()
		if got := u.arrived.Sum(t, toPort(f.to)).Count; got != 0 {
			t.Errorf("%d of %d packets to %s arrived", got, tried, f.to)
		}
	}
}

// A daemon of this build takes over what one of ABI 1 has left while packets flow: the rules, the counters, what names
// have taught, the flows; none that is allowed is lost and none that is not gets through.
func TestUpgradeFromABI1(t *testing.T) {
	u := newUpgrade(t)
	u.flowing(t)
	d, err := Open(Config{Dir: u.dir})
	if err != nil {
		t.Fatal(err)
	}
	u.flowing(t)
	if _, err := os.Stat(pins(u.dir).version(1)); !os.IsNotExist(err) {
		t.Errorf("v1 is left: %v", err)
	}
	if !u.conn.Echoes(t, testenv.Patience) {
		t.Error("the connection from outside is cut")
	}
	u.check(t, d)

	// The next of the same ABI, and then another policy.
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	u.flowing(t)
	d = open(t, u.dir)
	u.check(t, d)
	u.flowing(t)
	u.end(t)
	for id := range u.ids {
		replace(t, d, id, policy.BlockAll())
	}
	if out := u.job.Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: u.allowed[2].to}); out.Errno == 0 {
		t.Errorf("block-all by the new daemon: %s", out)
	}
}

// A take-over that dies at any step is done by the next daemon, and packets do not notice either.
func TestCrashDuringUpgrade(t *testing.T) {
	m := inMortalProcess(t)
	if m == nil {
		return
	}
	u := newUpgrade(t)
	for fatal := 1; ; fatal++ {
		died, err := m.until(fatal, func() error {
			d, err := Open(Config{Dir: u.dir})
			if err != nil {
				return err
			}
			return d.Close()
		})
		if err != nil {
			t.Fatalf("step %d: %v", fatal, err)
		}
		d, err := Open(Config{Dir: u.dir})
		if err != nil {
			t.Fatalf("after step %d: %v", fatal, err)
		}
		u.check(t, d)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("step %d", fatal)
		}
		if !died {
			t.Logf("%d steps", fatal-1)
			break
		}
		u.backToABI1(t)
	}
	u.end(t)
}

// backToABI1 leaves what is pinned as ABI 1 had it, but for the programs.
func (u *upgrade) backToABI1(t *testing.T) {
	t.Helper()
	p := pins(u.dir)
	pinned, err := os.ReadDir(p.maps())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range pinned {
		if !slices.Contains(oldestMaps, e.Name()) {
			if err := os.Remove(filepath.Join(p.maps(), e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Rename(p.base(), p.version(1)); err != nil {
		t.Fatal(err)
	}
}

// What older daemons have pinned ends with the rest, without one of them.
func TestRemoveAllOfABI1(t *testing.T) {
	dir := pinDir(t)
	old := startABI1(t, dir)
	old.rules(t, firstPolicy)
	veth, cgroup := vethTarget(t, "v0"), cgroupTarget(t)
	old.attach(t, veth, learnedAddr)
	old.attach(t, cgroup, learnedAddr)
	old.kill()
	if err := RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("pins are left: %v", err)
	}
	for _, attach := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		if on, err := link.QueryPrograms(link.QueryOptions{Target: veth.Ifindex, Attach: attach}); err != nil || len(on.Programs) > 0 {
			t.Errorf("programs are left: %+v, %v", on, err)
		}
	}
}
