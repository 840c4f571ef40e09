// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// What the policy would drop passes, and is counted and told of; what is not the
// policy's to decide is dropped all the same.
func TestAudit(t *testing.T) {
	d, h := openHearing(t, Config{Dir: pinDir(t)})
	tg, stranger := vethTarget(t, "v0"), vethTarget(t, "v1")
	id := attach(t, d, tg)
	p := packetPolicy()
	p.Audit = true
	replace(t, d, id, p)
	for _, tt := range []struct {
		name   string
		packet []byte
		reason string // "": nothing is against it
		rule   string
		drops  bool
	}{
		{"allowed", udp4("192.0.2.1", 9), "", "", false},
		{"unlisted", udp4("10.9.9.9", 9), "no-rule", "", false},
		{"denied", udp4("192.0.2.129", 9), "deny-rule", "deny 192.0.2.128/25", false},
		{"denied port", tcp4("203.0.113.65", 25), "deny-rule", "deny 203.0.113.65/32 ports 25/tcp", false},
		{"not ip", frame(make([]byte, 28), 0x88cc), "not-ip", "", false},
		{"source route", frame(ipv4{dst: "192.0.2.1", proto: protoUDP, options: []byte{131, 7, 4, 10, 9, 9, 9, 0}}.packet(udp(1, 2)), etherIPv4), "source-route", "", false},
		{"loopback off lo", udp4("127.0.0.1", 9), "loopback", "", false},
		{"a DNS address", udp4("127.128.0.7", 9), "protected", "", true},
	} {
		for _, time := range []string{"first", "second"} {
			before, err := d.Counters(id)
			if err != nil {
				t.Fatal(err)
			}
			want := uint32(passed)
			if tt.drops {
				want = dropped
			}
			verdict(t, d, tg, tt.name, tt.packet, want)
			after, err := d.Counters(id)
			if err != nil {
				t.Fatal(err)
			}
			if tt.reason != "" && !tt.drops {
				before.PacketsWouldDeny++
				before.WouldDeny = maps.Clone(before.WouldDeny)
				if before.WouldDeny == nil {
					before.WouldDeny = make(map[string]uint64)
				}
				before.WouldDeny[tt.reason]++
			}
			if after.PacketsWouldDeny != before.PacketsWouldDeny || !maps.Equal(after.WouldDeny, before.WouldDeny) ||
				(after.PacketsDropped > before.PacketsDropped) != tt.drops || (after.PacketsAllowed > before.PacketsAllowed) == tt.drops {
				t.Errorf("%s, the %s time: counted %+v, before %+v", tt.name, time, after, before)
			}
			told, _ := h.take(t)
			switch {
			case tt.reason == "" && len(told) > 0:
				t.Errorf("%s: told of %+v", tt.name, told[0].Flow)
			case tt.reason != "" && (len(told) != 1 || told[0].Flow.Reason != tt.reason ||
				told[0].Flow.Rule != tt.rule || told[0].Flow.WouldDeny == tt.drops):
				t.Errorf("%s, the %s time: told of %d, %+v", tt.name, time, len(told), told[0].Flow)
			}
		}
	}
	verdict(t, d, stranger, "an interface that is not attached", udp4("192.0.2.1", 9), dropped)

	p.Audit = false
	replace(t, d, id, p)
	verdict(t, d, tg, "audit is over", udp4("10.9.9.9", 9), dropped)
}

// A cgroup in audit notices nothing, whatever kind of socket it uses.
func TestAuditOfACgroup(t *testing.T) {
	h := hostWithCgroup(t, &policy.Policy{Mode: policy.ModeAllowlist, Audit: true})
	testenv.StartWorkload(t, h.outside, nil).Serve(t, 7777)
	w := testenv.StartWorkload(t, h.ns, h.cg)
	server := netip.MustParseAddrPort("10.5.0.2:7777")
	for _, kind := range []testenv.ProbeKind{testenv.TCP, testenv.UDPConnected, testenv.UDPSendto, testenv.Echo} {
		if got := w.Probe(t, testenv.Probe{Kind: kind, To: server, Wait: testenv.Patience}); !got.Answered {
			t.Errorf("%s: %s, want an answer", kind, got)
		}
	}
	c, err := h.d.Counters(h.id)
	if err != nil || c.PacketsDropped != 0 || c.WouldDeny["no-rule"] == 0 {
		t.Errorf("counted %+v, %v; want no drop, and what would have been one", c, err)
	}
}
