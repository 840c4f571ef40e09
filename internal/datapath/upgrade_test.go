// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

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
		sent := f.stop().Sent
		u.arrived.Await(t, sent, toPort(f.to))
		if got := u.arrived.Sum(t, toPort(f.to)); got.Count != sent {
			t.Errorf("%d of %d packets to %s arrived", got.Count, sent, f.to)
		}
	}
	for _, f := range u.forbidden {
		tried := f.stop().Sent
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
	d, err := openRenewed(Config{Dir: u.dir})
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

// attachAnother adds a cgroup whose programs no links hold, as those of ABI 1 do.
func (u *upgrade) attachAnother(t *testing.T) (id string, tg target.Target) {
	t.Helper()
	tg = cgroupTarget(t)
	d, err := openRenewed(Config{Dir: u.dir})
	if err != nil {
		t.Fatal(err)
	}
	id = attachOnly(t, d, tg)
	replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	u.backToABI1(t)
	return id, tg
}

// A take-over that dies at any step is done by the next daemon, and packets do not notice either.
func TestCrashDuringUpgrade(t *testing.T) {
	m := inMortalProcess(t)
	if m == nil {
		return
	}
	u := newUpgrade(t)
	another, tg := u.attachAnother(t)
	refused := refusing(t, tg)
	for fatal := 1; ; fatal++ {
		died, err := m.until(fatal, func() error {
			d, err := openRenewed(Config{Dir: u.dir})
			if err != nil {
				return err
			}
			return d.Close()
		})
		if err != nil {
			t.Fatalf("step %d: %v", fatal, err)
		}
		d, err := openRenewed(Config{Dir: u.dir})
		if err != nil {
			t.Fatalf("after step %d: %v", fatal, err)
		}
		u.check(t, d)
		if got := d.occupied(t, tg); len(got) != len(d.hooks(d.known[another].record)) {
			t.Errorf("programs at %v", got)
		}
		if !died {
			refused(t, d, another)
		}
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
