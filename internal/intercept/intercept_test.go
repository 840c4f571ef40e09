// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func open(t *testing.T) *datapath.Datapath {
	t.Helper()
	return openAt(t, filepath.Join(testenv.BPFFS(t), "netfence"))
}

func openAt(t *testing.T, dir string) *datapath.Datapath {
	t.Helper()
	return openWith(t, datapath.Config{Dir: dir})
}

func openWith(t *testing.T, cfg datapath.Config) *datapath.Datapath {
	t.Helper()
	if testenv.Clsact() {
		cfg.InterfaceHook = datapath.HookClsact
	}
	d, err := datapath.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

// front opens one with a responder.
func front(t *testing.T, open func(intercept.Kernel) (*intercept.Front, error), d *datapath.Datapath) *intercept.Front {
	t.Helper()
	f, err := open(d)
	if err != nil {
		t.Fatal(err)
	}
	done := respond(f, d)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close front: %v", err)
		}
		done.Wait()
	})
	return f
}

// everywhere allows all addresses: no rule lets a query out.
func everywhere() *policy.Policy {
	return &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0")}, {Prefix: netip.MustParsePrefix("::/0")},
	}}
}

func attach(t *testing.T, d *datapath.Datapath, tg target.Target, p *policy.Policy) (id string, index uint32) {
	t.Helper()
	id = uuid.NewString()
	if err := d.Attach(id, tg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Detach(id); err != nil {
			t.Errorf("detach: %v", err)
		}
	})
	replace(t, d, id, p)
	index, ok := d.Index(id)
	if !ok {
		t.Fatalf("attachment %s has no index", id)
	}
	return id, index
}

func replace(t *testing.T, d *datapath.Datapath, id string, p *policy.Policy) {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	c, err := p.Settle(nil, time.Duration(ts.Nano()), time.Now()).Compile()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Replace(id, c); err != nil {
		t.Fatal(err)
	}
}

func interfaceTarget(t *testing.T, name string) target.Target {
	t.Helper()
	tg, err := target.ResolveInterface(name, target.Ingress, "")
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

func cgroupTarget(t *testing.T, cg *testenv.Cgroup) target.Target {
	t.Helper()
	tg, err := target.ResolveCgroup(cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

// escaped says which queries arrived outside. A probe that is allowed goes after
// them first: what was sent before it has arrived by then.
func escaped(t *testing.T, outside *testenv.Observer, ns *testenv.NS, cg *testenv.Cgroup) {
	t.Helper()
	last := netip.MustParseAddrPort("203.0.113.77:9")
	before := outside.Sum(t, testenv.To(last.Addr())).Count
	testenv.StartWorkload(t, ns, cg).Probe(t, testenv.Probe{Kind: testenv.UDPSendto, To: last})
	outside.Await(t, before+1, testenv.To(last.Addr()))
	for p, seen := range outside.Packets(t) {
		if p.Port == 53 {
			t.Errorf("%d packets arrived outside: %+v", seen.Count, p)
		}
	}
}
