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

func replaceUnder(t testing.TB, d *Datapath, id string, p *policy.Policy, guard *policy.Guard) {
	t.Helper()
	c, err := p.Settle(nil, bootTime(t), time.Now()).CompileWith(guard)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Replace(id, c); err != nil {
		t.Fatal(err)
	}
}

// The guard stands above every rule and every mode.
func TestGuard(t *testing.T) {
	guard := &policy.Guard{
		Allow: []policy.Rule{rule("192.0.2.53/32", ports(514, 514, policy.UDP))},
		Deny:  []policy.Rule{rule("169.254.0.0/16"), rule("fd00:ec2::254/128")},
	}
	packets := map[string][]byte{
		"log":         udp4("192.0.2.53", 514),
		"another":     udp4("192.0.2.53", 515),
		"metadata":    tcp4("169.254.169.254", 80),
		"metadata v6": udp6("fd00:ec2::254", 80),
		"embedded":    udp6("64:ff9b::169.254.169.254", 80),
		"other":       tcp4("198.51.100.1", 80),
	}
	everything := []policy.Rule{rule("0.0.0.0/0"), rule("::/0"), rule("169.254.169.254/32")}
	passes := func(names ...string) map[string]bool {
		m := make(map[string]bool)
		for _, name := range names {
			m[name] = true
		}
		return m
	}
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	for _, tt := range []struct {
		name   string
		policy policy.Policy
		passes map[string]bool
	}{
		{"block-all", policy.Policy{}, passes("log")},
		{"disabled", policy.Policy{Mode: policy.ModeDisabled}, passes("log", "another", "other")},
		{"allowlist of everything", policy.Policy{Mode: policy.ModeAllowlist, Allow: everything}, passes("log", "another", "other")},
		{"allowlist of nothing", policy.Policy{Mode: policy.ModeAllowlist}, passes("log")},
		{"denylist of everything", policy.Policy{Mode: policy.ModeDenylist, Deny: everything}, passes("log")},
		{"audit", policy.Policy{Mode: policy.ModeAllowlist, Audit: true}, passes("log", "another", "other")},
		{"block-all in audit", policy.Policy{Audit: true}, passes("log", "another", "other")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			replaceUnder(t, d, id, &tt.policy, guard)
			for name, packet := range packets {
				want := uint32(dropped)
				if tt.passes[name] {
					want = passed
				}
				for _, time := range []string{"first", "second"} {
					if got := run(t, d.bpf.NfOutL2, tg, packet); got != want {
						t.Errorf("%s, the %s time: verdict %#x, want %#x", name, time, got, want)
					}
				}
			}
		})
	}
	c, err := d.Counters(id)
	if err != nil || c.Drops["guard"] == 0 || c.WouldDeny["guard"] != 0 {
		t.Errorf("counted %+v, %v; want drops by the guard, and none that audit let pass", c, err)
	}
}

// In block-all an interface sends what it takes to find a neighbour, if there is one
// that the guard allows; what belongs to lo stays there.
func TestGuardInBlockAll(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	neighbour := neighbour(135, "fe80::7", "fd00::5", 1, ownMAC)
	arp, dhcp := arpOf(ownMAC, "10.0.0.2"), frame(ipv4{src: "0.0.0.0", dst: "255.255.255.255", proto: protoUDP}.packet(udp(68, 67)), etherIPv4)
	for _, tt := range []struct {
		name  string
		guard *policy.Guard
		want  uint32
	}{
		{"nothing allowed", &policy.Guard{Deny: []policy.Rule{rule("169.254.0.0/16")}}, dropped},
		{"something allowed", &policy.Guard{Allow: []policy.Rule{rule("0.0.0.0/0")}}, passed},
		{"no guard", nil, dropped},
	} {
		replaceUnder(t, d, id, policy.BlockAll(), tt.guard)
		verdict(t, d, tg, tt.name+": arp", arp, tt.want)
		verdict(t, d, tg, tt.name+": neighbour solicitation", neighbour, tt.want)
		verdict(t, d, tg, tt.name+": dhcp", dhcp, tt.want)
		verdict(t, d, tg, tt.name+": an address", udp4("192.0.2.1", 9), tt.want)
		verdict(t, d, tg, tt.name+": loopback off lo", udp4("127.0.0.1", 9), dropped)
		verdict(t, d, tg, tt.name+": router advertisement", frame(ipv6{dst: "ff02::1", proto: protoICMPv6, hops: 255}.packet(icmp(134, 0)), etherIPv6), dropped)
		verdict(t, d, tg, tt.name+": not ip", frame(make([]byte, 28), 0x88cc), dropped)
	}
	spoofed := &policy.Policy{Source: []policy.Source{{Prefix: netip.MustParsePrefix("10.9.9.9/32")}}}
	replaceUnder(t, d, id, spoofed, &policy.Guard{Allow: []policy.Rule{rule("0.0.0.0/0")}})
	verdict(t, d, tg, "from another source", udp4("192.0.2.1", 9), dropped)
}

// Before the first policy nothing passes, the guard's or not.
func TestGuardBeginsWithThePolicy(t *testing.T) {
	d := open(t, pinDir(t))
	tg := vethTarget(t, "v0")
	id := attach(t, d, tg)
	log := udp4("192.0.2.53", 514)
	verdict(t, d, tg, "no policy yet", log, dropped)
	replaceUnder(t, d, id, policy.BlockAll(), &policy.Guard{Allow: []policy.Rule{rule("192.0.2.53/32")}})
	verdict(t, d, tg, "block-all", log, passed)
}

// A cgroup's sockets hear of the guard at sendmsg, in every mode.
func TestGuardOfACgroup(t *testing.T) {
	guard := &policy.Guard{Deny: []policy.Rule{rule("203.0.113.0/24")}, Allow: []policy.Rule{rule("192.0.2.53/32")}}
	h := hostWithCgroup(t, policy.BlockAll())
	w := testenv.StartWorkload(t, h.ns, h.cg)
	for _, tt := range []struct {
		name   string
		policy policy.Policy
		others unix.Errno // what the sender of a packet to another address gets
	}{
		{"disabled", policy.Policy{Mode: policy.ModeDisabled}, 0},
		{"denylist", policy.Policy{Mode: policy.ModeDenylist}, 0},
		{"audit", policy.Policy{Mode: policy.ModeAllowlist, Audit: true}, 0},
		{"allowlist", policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{rule("203.0.113.9/32")}}, unix.EPERM},
		{"block-all", policy.Policy{}, unix.EPERM},
	} {
		replaceUnder(t, h.d, h.id, &tt.policy, guard)
		for to, want := range map[string]unix.Errno{"203.0.113.9:9": unix.EPERM, "192.0.2.53:9": 0, "198.51.100.9:9": tt.others} {
			for _, kind := range []testenv.ProbeKind{testenv.UDPSendto, testenv.UDPConnected} {
				if got := w.Probe(t, testenv.Probe{Kind: kind, To: netip.MustParseAddrPort(to)}); got.Errno != want {
					t.Errorf("%s, %s to %s: %s, want %q", tt.name, kind, to, got, want)
				}
			}
		}
	}
}
