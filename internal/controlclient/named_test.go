// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

const superseded = netfencev1.CommandCode_COMMAND_CODE_SUPERSEDED

func put(number uint64, name, revision string, cidrs ...string) *netfencev1.ControlCommand {
	update := &netfencev1.BulkUpdate{Mode: allowlist}
	for _, cidr := range cidrs {
		update.AllowCidrs = append(update.AllowCidrs, &netfencev1.CIDREntry{Cidr: cidr})
	}
	return &netfencev1.ControlCommand{Number: number, Command: &netfencev1.ControlCommand_PutPolicy{
		PutPolicy: &netfencev1.NamedPolicy{Name: name, Revision: revision, Policy: update},
	}}
}

func use(id string, number uint64, name, revision string) *netfencev1.ControlCommand {
	return &netfencev1.ControlCommand{Id: id, Number: number, Command: &netfencev1.ControlCommand_UsePolicy{
		UsePolicy: &netfencev1.PolicyRef{Name: name, Revision: revision},
	}}
}

func deletion(number uint64, name string) *netfencev1.ControlCommand {
	return &netfencev1.ControlCommand{Number: number, Command: &netfencev1.ControlCommand_DeletePolicy{DeletePolicy: name}}
}

func (s *peerStream) want(cmd *netfencev1.ControlCommand, code netfencev1.CommandCode, revision string) *netfencev1.CommandResult {
	s.t.Helper()
	got := s.result(cmd)
	if got.GetNumber() != cmd.GetNumber() || got.GetId() != cmd.GetId() || got.GetCode() != code || got.GetRevision() != revision {
		s.t.Errorf("%v: got %v, want %v of revision %q", cmd, got, code, revision)
	}
	return got
}

// allows is the only prefix that the kernel holds an allow rule for.
func (h *harness) allows(id string) string {
	h.t.Helper()
	p := h.inForce(id)
	if p == nil || len(p.Allow) != 1 {
		return ""
	}
	return p.Allow[0].Prefix.String()
}

func TestNamedPolicy(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		h.live("2", "r1", denylist())
		h.live("3", "r1", denylist())
		s.want(put(1, "base", "b1", "192.0.2.0/24"), applied, "b1")
		s.want(use("1", 2, "base", ""), applied, "b1")
		s.want(use("2", 3, "base", "b1"), applied, "b1")
		s.want(use("3", 4, "base", "b0"), stale, "r1")
		s.want(use("3", 5, "other", ""), unknown, "r1")
		if h.allows("1") != "192.0.2.0/24" || h.allows("2") != "192.0.2.0/24" || h.inForce("3").Mode != policy.ModeDenylist {
			t.Errorf("in force: %q %q %v", h.allows("1"), h.allows("2"), h.inForce("3"))
		}

		// Its users follow it, once it is in force for all; others do not.
		s.want(put(6, "base", "b2", "198.51.100.0/24"), applied, "b2")
		if h.allows("1") != "198.51.100.0/24" || h.allows("2") != "198.51.100.0/24" || h.inForce("3").Mode != policy.ModeDenylist {
			t.Errorf("in force: %q %q %v", h.allows("1"), h.allows("2"), h.inForce("3"))
		}

		// It is not one user's to change, nor to be taken from them.
		increment := &netfencev1.ControlCommand{Id: "1", Number: 7, Command: allow("10.0.0.0/8")}
		s.want(increment, refused, "b2")
		s.want(deletion(8, "base"), refused, "")
		s.want(put(9, "base", "b3", "nonsense"), refused, "")
		s.want(&netfencev1.ControlCommand{Number: 10, BaseRevision: "b1", Command: put(0, "base", "b3").Command}, stale, "b2")
		s.want(&netfencev1.ControlCommand{Number: 11, BaseRevision: "b2", Command: put(0, "base", "b3", "203.0.113.0/24").Command}, applied, "b3")
		s.want(&netfencev1.ControlCommand{Id: "1", Number: 12, BaseRevision: "b3", Revision: "r2", Command: bulk(&netfencev1.BulkUpdate{Mode: allowlist})}, applied, "r2")
		if h.allows("1") != "" || h.allows("2") != "203.0.113.0/24" {
			t.Errorf("in force: %q %q", h.allows("1"), h.allows("2"))
		}
		s.want(&netfencev1.ControlCommand{Id: "2", Number: 13, Revision: "r2", Command: bulk(&netfencev1.BulkUpdate{Mode: allowlist})}, applied, "r2")
		s.want(deletion(14, "base"), applied, "")
		s.want(deletion(15, "base"), unknown, "")
		s.want(use("1", 16, "base", ""), unknown, "r2")
	})
}

// A policy, its first attachment and those that follow in one go: the order of the stream holds across attachments.
func TestNamedPolicyKeepsTheOrderOfTheStream(t *testing.T) {
	const n, rounds = 20, 10
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		for i := range n {
			h.live(fmt.Sprint(i), "r1", denylist())
		}
		number := uint64(0)
		for round := range rounds {
			name, cidr := fmt.Sprint("policy", round), fmt.Sprintf("192.0.2.%d/32", round)
			number++
			s.send(put(number, name, "b1", cidr))
			for i := range n {
				number++
				s.send(use(fmt.Sprint(i), number, name, "b1"))
			}
			number++
			s.send(put(number, name, "b2", cidr, "10.0.0.0/8"))
			if round > 0 {
				number++
				s.send(deletion(number, fmt.Sprint("policy", round-1)))
			}
		}
		for range number {
			if got := s.recv().GetResult(); got.GetCode() != applied && got.GetCode() != superseded {
				t.Errorf("got %v", got)
			}
		}
		for i := range n {
			if a, _, _ := h.store.Get(fmt.Sprint(i)); a.PolicyName != "policy9" || a.PolicyRevision != "b2" || len(h.inForce(a.ID).Allow) != 2 {
				t.Errorf("%d: %q %q %v", i, a.PolicyName, a.PolicyRevision, h.inForce(a.ID))
			}
		}
		if list := h.store.NamedPolicies(); len(list) != 1 {
			t.Errorf("left: %v", list)
		}
	})
}

func TestAttachToANamedPolicy(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		s.send(put(0, "base", "b1", "192.0.2.0/24"))
		h.pending("1")
		done := h.subscribe("1")
		if id := s.recv().GetSubscribed().GetId(); id != "1" {
			t.Fatal(id)
		}
		ack := func(id, name string) *netfencev1.ControlCommand {
			return &netfencev1.ControlCommand{Id: id, Number: 1, Command: &netfencev1.ControlCommand_SubscribedAck{
				SubscribedAck: &netfencev1.SubscribedAck{UsePolicy: &netfencev1.PolicyRef{Name: name}},
			}}
		}
		s.want(ack("1", "base"), applied, "b1")
		if err := <-done; err != nil || h.allows("1") != "192.0.2.0/24" {
			t.Errorf("%v, in force %v", err, h.inForce("1"))
		}

		// One that is not there fails the attach at once.
		h.pending("2")
		done = h.subscribe("2")
		s.recv()
		s.want(ack("2", "other"), unknown, "")
		var refusal *RefusedError
		if err := <-done; !errors.As(err, &refusal) || !errors.Is(err, state.ErrNoPolicy) {
			t.Errorf("attach: %v", err)
		}
	})
}

// What a reconnect tells: which policies are here, and who has which.
func TestNamedPolicyIsToldOf(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		s.want(put(1, "base", "b1", "192.0.2.0/24"), applied, "b1")
		s.want(put(2, "spare", "s1", "192.0.2.0/24"), applied, "s1")
		s.want(use("1", 3, "base", ""), applied, "b1")
		s.end <- errors.New("gone")
		_, sync := h.connect()
		wantEqual(t, sync.GetAttachments()[0].GetApplied(), &netfencev1.Applied{Revision: "b1", PolicyName: "base"})
		if len(sync.GetPolicies()) != 2 {
			t.Fatal(sync.GetPolicies())
		}
		wantEqual(t, sync.GetPolicies()[0], &netfencev1.PolicyRef{Name: "base", Revision: "b1"})
		wantEqual(t, sync.GetPolicies()[1], &netfencev1.PolicyRef{Name: "spare", Revision: "s1"})
	})
}

// What the kernel has no room for is refused for those who would have had it; the others have it.
func TestNamedPolicyRefusedForSome(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		for _, id := range []string{"1", "2", "3"} {
			h.live(id, "r1", denylist())
		}
		s.want(put(1, "base", "b1", "192.0.2.0/24"), applied, "b1")
		for i, id := range []string{"1", "2", "3"} {
			s.want(use(id, uint64(i+2), "base", ""), applied, "b1")
		}
		resume := h.kernel.pause()
		h.kernel.refuse = func(d state.Desired) error {
			if d.ID == "2" {
				return errors.New("the kernel has no room")
			}
			return nil
		}
		resume()
		got := s.want(put(5, "base", "b2", "198.51.100.0/24"), refused, "b2")
		if len(got.GetViolations()) != 1 || got.GetViolations()[0].GetValue() != "2" {
			t.Errorf("violations: %v", got.GetViolations())
		}
		if h.allows("1") != "198.51.100.0/24" || h.allows("2") != "192.0.2.0/24" || h.allows("3") != "198.51.100.0/24" {
			t.Errorf("in force: %q %q %q", h.allows("1"), h.allows("2"), h.allows("3"))
		}
		s.end <- errors.New("gone")
		_, sync := h.connect()
		for i, want := range []string{"b2", "b1", "b2"} {
			if got := sync.GetAttachments()[i].GetApplied(); got.GetRevision() != want || (got.GetError() != "") != (want == "b1") {
				t.Errorf("%v", got)
			}
		}
	})
}

// A command that a later one replaces before the kernel has followed is told apart from one that was in force.
func TestSuperseded(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "r1", denylist())
		resume := h.kernel.pause()
		for number, revision := range []string{"r2", "r3", "r4"} {
			s.send(&netfencev1.ControlCommand{Id: "1", Number: uint64(number + 2), Revision: revision, Command: bulk(&netfencev1.BulkUpdate{
				Mode: allowlist, AllowCidrs: []*netfencev1.CIDREntry{{Cidr: "192.0.2.1", Ttl: durationpb.New(time.Duration(number+1) * time.Hour)}},
			})})
		}
		synctest.Wait()
		resume()
		codes := map[uint64]netfencev1.CommandCode{}
		for range 3 {
			got := s.recv().GetResult()
			codes[got.GetNumber()] = got.GetCode()
			if got.GetRevision() != "r4" {
				t.Errorf("got %v", got)
			}
		}
		if codes[2] != superseded || codes[3] != superseded || codes[4] != applied {
			t.Errorf("got %v", codes)
		}
	})
}
