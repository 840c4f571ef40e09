// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

const (
	applied = netfencev1.CommandCode_COMMAND_CODE_APPLIED
	refused = netfencev1.CommandCode_COMMAND_CODE_REFUSED
	unknown = netfencev1.CommandCode_COMMAND_CODE_UNKNOWN
	stale   = netfencev1.CommandCode_COMMAND_CODE_STALE
)

func setMode(mode netfencev1.PolicyMode) *netfencev1.ControlCommand_SetMode {
	return &netfencev1.ControlCommand_SetMode{SetMode: &netfencev1.SetMode{Mode: mode}}
}

func allow(cidr string) *netfencev1.ControlCommand_AllowCidr {
	return &netfencev1.ControlCommand_AllowCidr{AllowCidr: &netfencev1.CIDREntry{Cidr: cidr}}
}

func bulk(update *netfencev1.BulkUpdate) *netfencev1.ControlCommand_BulkUpdate {
	return &netfencev1.ControlCommand_BulkUpdate{BulkUpdate: update}
}

// TestEveryCommand drives one attachment through all commands, as a published control plane does:
// unnumbered, in stream order.
func TestEveryCommand(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.accept()
		s.syncAck(nil)
		h.live("1", "r1", denylist())
		for _, cmd := range []*netfencev1.ControlCommand{
			{Command: bulk(&netfencev1.BulkUpdate{Mode: netfencev1.PolicyMode_POLICY_MODE_DENYLIST, AllowCidrs: []*netfencev1.CIDREntry{{Cidr: "192.0.2.9"}}})},
			{Command: setMode(allowlist)},
			{Command: allow("192.0.2.0/24")},
			{Command: &netfencev1.ControlCommand_DenyCidr{DenyCidr: &netfencev1.CIDREntry{Cidr: "192.0.2.7"}}},
			{Command: allow("2001:db8::/32")},
			{Command: &netfencev1.ControlCommand_RemoveCidr{RemoveCidr: "192.0.2.9"}},
			{Command: &netfencev1.ControlCommand_SetDnsMode{SetDnsMode: &netfencev1.SetDnsMode{Mode: netfencev1.DnsMode_DNS_MODE_DENYLIST}}},
			{Command: &netfencev1.ControlCommand_AllowDomain{AllowDomain: &netfencev1.DomainEntry{Domain: "pypi.org"}}},
			{Command: &netfencev1.ControlCommand_AllowDomain{AllowDomain: &netfencev1.DomainEntry{Domain: "github.com"}}},
			{Command: &netfencev1.ControlCommand_DenyDomain{DenyDomain: &netfencev1.DomainEntry{Domain: "evil.org", IncludeSubdomains: true}}},
			{Command: &netfencev1.ControlCommand_RemoveDomain{RemoveDomain: "github.com"}},
		} {
			cmd.Id = "1"
			s.send(cmd)
		}
		h.waitFor(func() bool {
			p := h.inForce("1")
			return len(p.DNS.Deny) == 1 && len(p.DNS.Allow) == 1
		})
		p := h.inForce("1")
		want := &policy.Policy{
			Mode:  policy.ModeAllowlist,
			Allow: []policy.Rule{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}, {Prefix: netip.MustParsePrefix("2001:db8::/32")}},
			Deny:  []policy.Rule{{Prefix: netip.MustParsePrefix("192.0.2.7/32")}},
			DNS: policy.DNS{
				Mode:  policy.DNSDenylist,
				Allow: []policy.DomainRule{{Domain: "pypi.org", Force: true}}, // the wire has no such field: the control plane knows
				Deny:  []policy.DomainRule{{Domain: "evil.org", IncludeSubdomains: true, Force: true}},
			},
		}
		if got, want := fmt.Sprintf("%+v", *p), fmt.Sprintf("%+v", *want); got != want {
			t.Errorf("in force %s\nwant     %s", got, want)
		}
		// Nothing came back: no reply was asked for. And nobody knows the revision any more.
		if a, _, _ := h.store.Get("1"); a.PolicyRevision != "" {
			t.Errorf("revision %q after unnumbered commands", a.PolicyRevision)
		}
	})
}

func TestOrderWithinAnAttachment(t *testing.T) {
	const n, each = 20, 50
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		for i := range n {
			h.live(fmt.Sprint(i), "", denylist())
		}
		// The receiver sees them interleaved; the last word on each prefix counts.
		for round := range each {
			for i := range n {
				cmd := &netfencev1.ControlCommand{Id: fmt.Sprint(i), Command: allow("192.0.2.1")}
				if round%2 == 1 {
					cmd.Command = &netfencev1.ControlCommand_RemoveCidr{RemoveCidr: "192.0.2.1"}
				}
				s.send(cmd)
			}
		}
		for i := range n {
			s.send(&netfencev1.ControlCommand{Id: fmt.Sprint(i), Number: uint64(i + 1), Command: setMode(allowlist)})
		}
		for range n {
			if code := s.recv().GetResult().GetCode(); code != applied {
				t.Error(code)
			}
		}
		for i := range n {
			if p := h.inForce(fmt.Sprint(i)); len(p.Allow) != 0 || p.Mode != policy.ModeAllowlist {
				t.Errorf("%d: %+v", i, p)
			}
		}
	})
}

// TestAttachmentsDoNotWaitForEachOther: one that the kernel does not take does not hold up the others.
func TestAttachmentsDoNotWaitForEachOther(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "", denylist())
		h.live("2", "", denylist())
		resume := h.kernel.pause()
		for i := range 100 {
			s.send(&netfencev1.ControlCommand{Id: "1", Number: uint64(i + 1), Command: allow(fmt.Sprintf("192.0.2.%d", i))})
		}
		// It is refused without the kernel, and so answered before all that wait.
		got := s.result(&netfencev1.ControlCommand{Id: "2", Number: 1000, Command: setMode(0)})
		if got.GetNumber() != 1000 || got.GetCode() != refused {
			t.Errorf("got %v", got)
		}
		resume()
		for range 100 {
			if code := s.recv().GetResult().GetCode(); code != applied {
				t.Error(code)
			}
		}
	})
}

func TestResults(t *testing.T) {
	tests := []struct {
		name  string
		cmd   *netfencev1.ControlCommand
		code  netfencev1.CommandCode
		rev   string // in the result
		field string // of the first violation
	}{
		{"applied", &netfencev1.ControlCommand{Id: "1", Revision: "r2", Command: setMode(allowlist)}, applied, "r2", ""},
		{"applied on its base", &netfencev1.ControlCommand{Id: "1", BaseRevision: "r1", Revision: "r2", Command: setMode(allowlist)}, applied, "r2", ""},
		{"without a change", &netfencev1.ControlCommand{Id: "1", Revision: "r1", Command: setMode(netfencev1.PolicyMode_POLICY_MODE_DENYLIST)}, applied, "r1", ""},
		{"host bits are masked and told", &netfencev1.ControlCommand{Id: "1", Command: allow("192.0.2.1/24")}, applied, "", "allow_cidr.cidr"},
		{"stale", &netfencev1.ControlCommand{Id: "1", BaseRevision: "r0", Revision: "r2", Command: setMode(allowlist)}, stale, "r1", ""},
		{"bad rule", &netfencev1.ControlCommand{Id: "1", Revision: "r2", Command: allow("nonsense")}, refused, "r1", "allow_cidr.cidr"},
		{"bad rule in the middle", &netfencev1.ControlCommand{Id: "1", Revision: "r2", Command: bulk(&netfencev1.BulkUpdate{
			Mode: allowlist, AllowCidrs: []*netfencev1.CIDREntry{{Cidr: "192.0.2.1"}, {Cidr: "192.0.2.300"}, {Cidr: "192.0.2.3"}},
		})}, refused, "r1", "bulk_update.allow_cidrs[1].cidr"},
		{"bad ttl", &netfencev1.ControlCommand{Id: "1", Command: &netfencev1.ControlCommand_AllowCidr{
			AllowCidr: &netfencev1.CIDREntry{Cidr: "192.0.2.1", Ttl: durationpb.New(-time.Second)},
		}}, refused, "r1", "allow_cidr.ttl"},
		{"mode unspecified", &netfencev1.ControlCommand{Id: "1", Command: bulk(&netfencev1.BulkUpdate{})}, refused, "r1", "bulk_update.mode"},
		{"unknown mode", &netfencev1.ControlCommand{Id: "1", Command: setMode(99)}, refused, "r1", "set_mode.mode"},
		{"audit", &netfencev1.ControlCommand{Id: "1", Revision: "r2", Command: bulk(&netfencev1.BulkUpdate{Mode: allowlist, Audit: true})}, applied, "r2", ""},
		{"source", &netfencev1.ControlCommand{Id: "1", Command: bulk(&netfencev1.BulkUpdate{Mode: allowlist, Source: []string{"10.0.0.0/8", "eth0"}})}, refused, "r1", "bulk_update.source[1]"},
		{"reply ports of TCP", &netfencev1.ControlCommand{Id: "1", Command: bulk(&netfencev1.BulkUpdate{
			Mode: allowlist, RepliesUdp: []*netfencev1.PortRange{{First: 53, Protocol: netfencev1.Protocol_PROTOCOL_TCP}},
		})}, refused, "r1", "bulk_update.replies_udp[0]"},
		{"no command", &netfencev1.ControlCommand{Id: "1"}, refused, "r1", "command"},
		{"no id", &netfencev1.ControlCommand{Command: setMode(allowlist)}, refused, "", "id"},
		{"revision too long", &netfencev1.ControlCommand{Id: "1", Revision: strings.Repeat("r", 257), Command: setMode(allowlist)}, refused, "r1", "revision"},
		{"increment while pending", &netfencev1.ControlCommand{Id: "2", Command: setMode(allowlist)}, refused, "", "command"},
		{"acknowledged again is an update", &netfencev1.ControlCommand{Id: "1", Revision: "r2", Command: &netfencev1.ControlCommand_SubscribedAck{
			SubscribedAck: &netfencev1.SubscribedAck{Mode: allowlist},
		}}, applied, "r2", ""},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(h *harness) {
				s, _ := h.connect()
				h.live("1", "r1", denylist())
				h.create(state.Attachment{ID: "2", Pending: true})
				h.settled("2")
				tt.cmd.Number = uint64(i + 1)
				got := s.result(tt.cmd)
				if got.GetNumber() != tt.cmd.GetNumber() || got.GetId() != tt.cmd.GetId() || got.GetCode() != tt.code || got.GetRevision() != tt.rev {
					t.Errorf("got %v, want %v and revision %q", got, tt.code, tt.rev)
				}
				field := ""
				if len(got.GetViolations()) > 0 {
					field = got.GetViolations()[0].GetField()
				}
				if !strings.HasPrefix(field, tt.field) || (field == "") != (tt.field == "") {
					t.Errorf("violation of %q, want %q", field, tt.field)
				}
				a, status, _ := h.store.Get("1")
				if tt.code == applied {
					return
				}
				if a.PolicyRevision != "r1" || a.Policy.Mode != policy.ModeDenylist || len(a.Policy.Allow) != 0 {
					t.Errorf("changed: %+v", a)
				}
				if tt.code == refused && tt.cmd.GetId() == "1" && status.LastError == nil {
					t.Error("the refusal does not show in the status")
				}
			})
		})
	}
}

// TestUnknownFields: a field of a later protocol may narrow what the rest of the command opens.
func TestUnknownFields(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		cmd := &netfencev1.ControlCommand{Id: "1", Number: 1, Command: allow("192.0.2.1")}
		cmd.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 199, protowire.VarintType), 1))
		if got := s.result(cmd); got.GetCode() != refused {
			t.Errorf("got %v", got)
		}
		later := &netfencev1.ControlCommand{Id: "1", Number: 2}
		later.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 150, protowire.BytesType), nil))
		if got := s.result(later); got.GetCode() != refused {
			t.Errorf("got %v", got)
		}
	})
}

func TestAppliedMeansInForce(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		resume := h.kernel.pause()
		s.send(&netfencev1.ControlCommand{Id: "1", Number: 7, Revision: "r2", Command: setMode(allowlist)})
		received := make(chan *netfencev1.DaemonEvent)
		go func() { received <- s.recv() }()
		synctest.Wait()
		select {
		case event := <-received:
			t.Fatalf("answered before the kernel had it: %v", event)
		default:
		}
		resume()
		wantEqual(t, (<-received).GetResult(), &netfencev1.CommandResult{Number: 7, Id: "1", Code: applied, Revision: "r2"})
	})
}

func TestRefusedByTheKernel(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		h.kernel.refuse = func(state.Desired) error { return errors.New("map is full") }
		got := s.result(&netfencev1.ControlCommand{Id: "1", Number: 1, Revision: "r2", Command: setMode(allowlist)})
		if got.GetCode() != refused || got.GetRevision() != "r1" || !strings.Contains(got.GetViolations()[0].GetExpected(), "map is full") {
			t.Errorf("got %v", got)
		}
		a, status, _ := h.store.Get("1")
		if a.PolicyRevision != "r1" || a.Policy.Mode != policy.ModeDenylist || status.LastError == nil {
			t.Errorf("%+v, %v", a, status.LastError)
		}
	})
}

func TestUnknownAttachment(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		s.send(&netfencev1.ControlCommand{Id: "9", Command: setMode(allowlist)})
		s.wantUnsubscribed("9", failed, "no such attachment")
		got := s.result(&netfencev1.ControlCommand{Id: "9", Number: 1, Command: setMode(allowlist)})
		wantEqual(t, got, &netfencev1.CommandResult{Number: 1, Id: "9", Code: unknown})
		s.wantUnsubscribed("9", failed, "no such attachment")
		// One that cannot be ours is not carried back.
		got = s.result(&netfencev1.ControlCommand{Id: strings.Repeat("9", 1<<20), Number: 2, Command: setMode(allowlist)})
		wantEqual(t, got, &netfencev1.CommandResult{Number: 2, Code: unknown})
	})
}

// TestTTLIsNotRenewed: the same rule sent again ends when it was first to end.
func TestTTLIsNotRenewed(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "", denylist())
		update := bulk(&netfencev1.BulkUpdate{Mode: allowlist, AllowCidrs: []*netfencev1.CIDREntry{{Cidr: "192.0.2.1", Ttl: durationpb.New(time.Hour)}}})
		deadline := func(number uint64) time.Duration {
			s.result(&netfencev1.ControlCommand{Id: "1", Number: number, Command: update})
			return h.inForce("1").Allow[0].Deadline
		}
		first := deadline(1)
		if again := deadline(2); first == 0 || again != first {
			t.Errorf("deadline %v, then %v", first, again)
		}
	})
}

// TestManyLargeCommands: more than the budget holds, and all are applied, or replaced by the next before they were.
func TestManyLargeCommands(t *testing.T) {
	entries := func(n int) (list []*netfencev1.CIDREntry) {
		for i := range n {
			list = append(list, &netfencev1.CIDREntry{Cidr: fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)})
		}
		return list
	}
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "", denylist())
		h.live("2", "", denylist())
		for i := range 20 {
			id := fmt.Sprint(i%2 + 1)
			s.send(&netfencev1.ControlCommand{Id: id, Number: uint64(i + 1), Command: bulk(&netfencev1.BulkUpdate{Mode: allowlist, AllowCidrs: entries(2000 + i)})})
		}
		var numbers []uint64
		for range 20 {
			result := s.recv().GetResult()
			if code := result.GetCode(); code != applied && (code != superseded || result.GetNumber() > 18) {
				t.Errorf("%v", result)
			}
			numbers = append(numbers, result.GetNumber())
		}
		slices.Sort(numbers)
		if numbers[0] != 1 || numbers[19] != 20 {
			t.Error(numbers)
		}
		if got := len(h.inForce("2").Allow); got != 2019 {
			t.Errorf("%d rules in force", got)
		}
	}, func(o *Options) { o.MaxCommandBytes = 64 << 10 })
}
