// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/uuid"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// pinDir is a bpffs of the test's own.
func pinDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpffs: %v (run as root)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return filepath.Join(dir, "netfence")
}

func open(t testing.TB, dir string) *Datapath {
	t.Helper()
	return openWith(t, Config{Dir: dir})
}

// openRenewed is Open, and what goes on after it has returned.
func openRenewed(cfg Config) (*Datapath, error) {
	d, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	<-d.renewed
	if d.renewErr != nil {
		return nil, errors.Join(d.renewErr, d.Close())
	}
	return d, nil
}

func openWith(t testing.TB, cfg Config) *Datapath {
	t.Helper()
	if cfg.InterfaceHook == HookAuto && testenv.Clsact() {
		cfg.InterfaceHook = HookClsact
	}
	d, err := openRenewed(cfg)
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

// vethTarget makes a veth pair and returns its host side as a target.
func vethTarget(t testing.TB, name string) target.Target {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatalf("add veth: %v", err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(l); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV) {
			t.Errorf("delete veth: %v", err)
		}
	})
	return interfaceTarget(t, l, false)
}

func interfaceTarget(t testing.TB, l netlink.Link, headerless bool) target.Target {
	t.Helper()
	cookie, err := target.NetnsCookie()
	if err != nil {
		t.Fatal(err)
	}
	return target.Target{
		Type: target.Interface, Name: l.Attrs().Name, Ifindex: l.Attrs().Index,
		NetnsCookie: cookie, Direction: target.Ingress, LinkKind: l.Type(), Headerless: headerless,
	}
}

// cgroupTarget makes a cgroup.
func cgroupTarget(t testing.TB) target.Target {
	t.Helper()
	mount, err := target.Cgroup2Mount()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(mount, "netfence-test-"+uuid.NewString())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	tg, err := target.ResolveCgroup(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

func newID() string { return uuid.NewString() }

func attach(t testing.TB, d *Datapath, tg target.Target) string {
	t.Helper()
	id := attachOnly(t, d, tg)
	t.Cleanup(func() {
		if err := d.Detach(id); err != nil {
			t.Errorf("detach: %v", err)
		}
	})
	return id
}

func compile(t testing.TB, p *policy.Policy) *policy.Compiled {
	t.Helper()
	c, err := p.Settle(nil, bootTime(t), time.Now()).Compile()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func replace(t testing.TB, d *Datapath, id string, p *policy.Policy) {
	t.Helper()
	if err := d.Replace(id, compile(t, p)); err != nil {
		t.Fatal(err)
	}
}

func bootTime(t testing.TB) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// skb is struct __sk_buff as far as the test sets it (include/uapi/linux/bpf.h).
type skb struct {
	_       [20]byte
	_       [4]byte // vlan_present
	_       [16]byte
	Ifindex uint32
	_       [148]byte
}

const (
	passed  = 0xffffffff // TC_ACT_UNSPEC
	dropped = 2          // TC_ACT_SHOT
)

// run gives one packet to a program as if it had come to the interface.
func run(t testing.TB, p *ebpf.Program, tg target.Target, packet []byte) uint32 {
	t.Helper()
	for len(packet) < 64 {
		packet = append(packet, 0) // frames are padded on the wire too
	}
	return runExact(t, p, tg, packet)
}

// runExact does not pad.
func runExact(t testing.TB, p *ebpf.Program, tg target.Target, packet []byte) uint32 {
	t.Helper()
	verdict, err := p.Run(&ebpf.RunOptions{Data: packet, Context: &skb{Ifindex: uint32(tg.Ifindex)}})
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}
