// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"slices"
	"testing"
	"testing/synctest"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

// An attachment that was given its policy locally does not exist for the control plane, whatever the peer tries.
func TestOwnPolicyIsNeverAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, func(o *Options) {
			o.Counters = func(string) (Stats, bool) { return Stats{PacketsAllowed: 1}, true }
		})
		own := func(id string) { h.create(state.Attachment{ID: id, Policy: denylist(), OwnPolicy: true}) }
		// Before anything runs: a client that is faster than the test would announce it afterwards.
		own("mine")
		h.create(state.Attachment{ID: "theirs", Policy: denylist(), PolicyRevision: "r1"})
		h.start()
		h.settled("mine")
		h.settled("theirs")
		s, sync := h.connect()
		if len(sync.GetAttachments()) != 1 || sync.GetAttachments()[0].GetId() != "theirs" {
			t.Errorf("sync request: %v", sync)
		}
		own("later")
		h.settled("later")
		beat := s.recv().GetHeartbeat()
		if beat == nil || slices.ContainsFunc(beat.GetStats(), func(a *netfencev1.AttachmentStats) bool { return a.GetId() != "theirs" }) ||
			len(beat.GetStats()) != 1 {
			t.Errorf("heartbeat: %v", beat)
		}

		for _, cmd := range []*netfencev1.ControlCommand{
			{Command: setMode(netfencev1.PolicyMode_POLICY_MODE_DISABLED)},
			{Command: bulk(&netfencev1.BulkUpdate{Mode: netfencev1.PolicyMode_POLICY_MODE_DISABLED})},
		} {
			cmd.Id, cmd.Number = "mine", 7
			if got := s.result(cmd); got.GetCode() != unknown {
				t.Errorf("%v: %v", cmd, got)
			}
			if gone := s.recv().GetUnsubscribed(); gone.GetId() != "mine" {
				t.Errorf("as for any unknown id: %v", gone)
			}
		}
		if p := h.inForce("mine"); p.Mode != policy.ModeDenylist {
			t.Errorf("mode %v", p.Mode)
		}

		for _, id := range []string{"mine", "later", "theirs"} {
			if _, err := h.store.Remove(id, state.ReasonDetached, ""); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if gone := s.recv().GetUnsubscribed(); gone.GetId() != "theirs" {
			t.Errorf("detached: %v", gone)
		}
	})
}
