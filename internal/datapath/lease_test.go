// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func replaceLeased(t *testing.T, d *Datapath, id string, p *policy.Policy) {
	t.Helper()
	c, err := p.CompileWith(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.ReplaceLeased(id, c); err != nil {
		t.Fatal(err)
	}
}

func setLease(t *testing.T, d *Datapath, end time.Duration) {
	t.Helper()
	if err := d.SetLease(end); err != nil {
		t.Fatal(err)
	}
}

// A leased policy ends with the lease, whatever its mode and whatever a processor remembers of it, and is there again when
// it is renewed; another's does not.
func TestLease(t *testing.T) {
	d := open(t, pinDir(t))
	leased, own := vethTarget(t, "v0"), vethTarget(t, "v1")
	id, other := attach(t, d, leased), attach(t, d, own)
	open := map[string]*policy.Policy{
		"allowlist": packetPolicy(), "denylist": {Mode: policy.ModeDenylist}, "disabled": {Mode: policy.ModeDisabled},
		"audit": {Mode: policy.ModeAllowlist, Audit: true},
	}
	packet := udp4("192.0.2.1", 9)
	arp := frame(make([]byte, 28), etherARP)
	for name, p := range open {
		replaceLeased(t, d, id, p)
		replace(t, d, other, p)
		for _, end := range []struct {
			what string
			at   time.Duration
			want uint32
		}{
			{"never", 0, passed}, {"later", bootTime(t) + time.Hour, passed}, {"passed", bootTime(t) - 20*time.Millisecond, dropped},
			{"renewed", bootTime(t) + time.Hour, passed}, {"passed long ago", 1, dropped},
		} {
			setLease(t, d, end.at)
			for range 2 { // the second time it may be remembered
				if got := run(t, d.bpf.NfOutL2, leased, packet); got != end.want {
					t.Errorf("%s, lease %s: verdict %#x, want %#x", name, end.what, got, end.want)
				}
				if got := run(t, d.bpf.NfOutL2, leased, arp); got != end.want {
					t.Errorf("%s, lease %s: arp %#x, want %#x", name, end.what, got, end.want)
				}
				if got := run(t, d.bpf.NfOutL2, own, packet); got != passed {
					t.Errorf("%s, lease %s: verdict on another's %#x", name, end.what, got)
				}
			}
			if chain := d.Chain(d.known[id].index); (len(chain) == 1) != (end.want == passed) {
				t.Errorf("%s, lease %s: queries are decided by %v", name, end.what, chain)
			}
			if chain := d.Chain(d.known[other].index); len(chain) != 1 {
				t.Errorf("%s, lease %s: another's queries are decided by %v", name, end.what, chain)
			}
		}
		setLease(t, d, 0)
	}
	c, err := d.Counters(id)
	if err != nil || c.Drops["block-all"] != uint64(len(open)*2*2*2) {
		t.Errorf("dropped %v, %v", c.Drops, err)
	}
}

// The same of a cgroup, by real sockets: connect is refused at once.
func TestLeaseOfACgroup(t *testing.T) {
	allow := &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("10.5.0.0/24")}}
	h := hostWithCgroup(t, allow)
	testenv.StartWorkload(t, h.outside, nil).Serve(t, 7777)
	w := testenv.StartWorkload(t, h.ns, h.cg)
	server := netip.MustParseAddrPort("10.5.0.2:7777")
	replaceLeased(t, h.d, h.id, allow)
	probe := testenv.Probe{Kind: testenv.TCP, To: server, Wait: testenv.Patience}
	if got := w.Probe(t, probe); !got.Answered {
		t.Errorf("never over: %s", got)
	}
	setLease(t, h.d, 1)
	if got := w.Probe(t, probe); got.Errno != unix.EPERM {
		t.Errorf("over: %s, want EPERM", got)
	}
	setLease(t, h.d, bootTime(t)+time.Hour)
	if got := w.Probe(t, probe); !got.Answered {
		t.Errorf("renewed: %s", got)
	}
}

// The lease is over without a daemon, and a daemon that comes back does not renew it by that.
func TestLeaseWithoutDaemon(t *testing.T) {
	dir := pinDir(t)
	d, err := openRenewed(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	tg := vethTarget(t, "v0")
	id := attachOnly(t, d, tg)
	replaceLeased(t, d, id, packetPolicy())
	end := bootTime(t) + 200*time.Millisecond
	setLease(t, d, end)
	program, err := d.bpf.NfOutL2.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = closeBPF(program) }()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	packet := udp4("192.0.2.1", 9)
	testenv.Eventually(t, "end of the lease", func() bool { return run(t, program, tg, packet) == dropped })
	if now := bootTime(t); now < end-10*time.Millisecond {
		t.Errorf("over %v early", end-now)
	}
	d = open(t, dir)
	t.Cleanup(func() {
		if err := d.Detach(id); err != nil {
			t.Error(err)
		}
	})
	if d.Lease() != end {
		t.Errorf("lease %v, want %v", d.Lease(), end)
	}
	if got := run(t, d.bpf.NfOutL2, tg, packet); got != dropped {
		t.Errorf("verdict after a restart %#x", got)
	}
	// What is not leased any more does not end with it.
	replace(t, d, id, packetPolicy())
	if got := run(t, d.bpf.NfOutL2, tg, packet); got != passed {
		t.Errorf("verdict %#x, want it to pass", got)
	}
}
