// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

// A policy that many attachments of a daemon have is sent once, and so is a change of it. Who does not know named
// policies gets one for each.
func TestSharedPolicyIsSentOnce(t *testing.T) {
	const n = 50
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	by.set("b", allow("10.1.0.0/16"))
	plane, server := serve(t, controlplane.Options{Policy: by.policy})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	old := server.Connect(t, controlplanetest.Config{ID: "old", Without: []string{"named_policies"}})
	var ids []string
	for i := range n {
		ids = append(ids, d.Attach(t, fmt.Sprint("/", i), named([]string{"a", "b"}[i%2])))
		old.Attach(t, fmt.Sprint("/", i), named("a"))
	}
	wait(t, plane, plane.Refresh(controlplane.Selector{}))
	if got := d.Commands(); got["put_policy"] != 1 || got["subscribed_ack"] != n || got["bulk_update"] != 0 {
		t.Errorf("attached with %v", got)
	}
	sent := func(change func()) map[string]int {
		t.Helper()
		before := d.Commands()
		change()
		if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Applied != 2*n || !outcome.OK() {
			t.Errorf("outcome %+v", outcome)
		}
		after := d.Commands()
		for name, count := range before {
			after[name] -= count
		}
		return after
	}
	// All go on to the same.
	got := sent(func() { by.set("a", allow("10.2.0.0/16")); by.set("b", allow("10.2.0.0/16")) })
	if got["put_policy"] != 1 || got["bulk_update"]+got["use_policy"] > 1 {
		t.Errorf("one change of all was sent as %v", got)
	}
	if n := old.Commands()["bulk_update"]; n != 50 {
		t.Errorf("%d updates to who does not know named policies", n)
	}
	// Half of them do: they leave.
	got = sent(func() { by.set("b", allow("10.3.0.0/16")) })
	if got["put_policy"] != 1 || got["use_policy"] != n/2 || got["bulk_update"] != 0 {
		t.Errorf("a change of half was sent as %v", got)
	}
	for i, id := range ids {
		if want := []string{"10.2.0.0/16", "10.3.0.0/16"}[i%2]; !allows(want)(d.Policy(id)) {
			t.Errorf("%d: got %+v, want %s", i, d.Policy(id), want)
		}
	}
	// They come together again: one of the two is not needed any more.
	got = sent(func() { by.set("a", allow("10.3.0.0/16")) })
	if got["put_policy"]*(n/2)+got["use_policy"] == 0 || got["bulk_update"] > 1 {
		t.Errorf("a reunion was sent as %v", got)
	}

	// After a reconnect there is nothing to send, and the names still count.
	if err := d.Reconnect(); err != nil {
		t.Fatal(err)
	}
	if got = sent(func() {}); got["put_policy"]+got["use_policy"]+got["bulk_update"] != 0 {
		t.Errorf("a reconnect was sent %v", got)
	}
	got = sent(func() { by.set("a", allow("10.4.0.0/16")); by.set("b", allow("10.4.0.0/16")) })
	if got["put_policy"] > 2 || got["use_policy"] > 0 {
		t.Errorf("a change after the reconnect was sent as %v", got)
	}
}

// A named policy that is refused is refused for all that have it, and not tried again.
func TestSharedPolicyRefused(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	plane, server := serve(t, controlplane.Options{Policy: by.policy, OnRefused: func(controlplane.Attachment, controlplane.Refusal) {}})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	for i := range 5 {
		d.Attach(t, fmt.Sprint("/", i), named("a"))
	}
	wait(t, plane, plane.Refresh(controlplane.Selector{}))
	d.Refuse(func(_ string, p *policy.Policy) error {
		if allows("10.2.0.0/16")(p) {
			return errors.New("no room")
		}
		return nil
	})
	by.set("a", allow("10.2.0.0/16"))
	for range 2 {
		if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Refused != 5 {
			t.Errorf("outcome %+v", outcome)
		}
	}
	if got := d.Commands(); got["put_policy"] != 2 || got["bulk_update"] > 1 {
		t.Errorf("sent %v", got)
	}
	by.set("a", allow("10.1.0.0/16")) // what the daemon still has
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Applied != 5 {
		t.Errorf("outcome %+v", outcome)
	}
	by.set("a", allow("10.3.0.0/16"))
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Applied != 5 {
		t.Errorf("outcome %+v", outcome)
	}
	for a := range plane.Attachments(controlplane.Selector{}) {
		if !allows("10.3.0.0/16")(d.Policy(a.ID)) {
			t.Errorf("%s: got %+v", a.ID, d.Policy(a.ID))
		}
	}
}
