// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

// A refresh sends what differs, and its outcome is of what is in force.
func TestRefresh(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	by.set("b", allow("10.2.0.0/16"))
	plane, server := serve(t, controlplane.Options{Policy: by.policy})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	a := d.Attach(t, "/a", named("a"))
	b := d.Attach(t, "/b", named("b"))
	if !allows("10.1.0.0/16")(d.Policy(a)) || !allows("10.2.0.0/16")(d.Policy(b)) {
		t.Fatalf("got %+v and %+v", d.Policy(a), d.Policy(b))
	}

	by.set("a", allow("10.3.0.0/16"))
	change := plane.Refresh(controlplane.Selector{})
	if change.Len() != 2 {
		t.Errorf("change of %d", change.Len())
	}
	if outcome := wait(t, plane, change); outcome.Applied != 2 || !outcome.OK() || len(outcome.Listed) > 0 {
		t.Errorf("outcome %+v", outcome)
	}
	if !allows("10.3.0.0/16")(d.Policy(a)) {
		t.Errorf("got %+v", d.Policy(a))
	}
	if n := d.Commands()["bulk_update"]; n != 1 {
		t.Errorf("%d updates, want one: of the one that changed", n)
	}
	// Equal content is nothing to send, another pointer or not.
	by.set("a", allow("10.3.0.0/16"))
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{ID: a})); outcome.Applied != 1 {
		t.Errorf("outcome %+v", outcome)
	}
	if n := d.Commands()["bulk_update"]; n != 1 {
		t.Errorf("%d updates after a refresh that changed nothing", n)
	}
}

// What a daemon refused is not sent again until it is another policy.
func TestRefusalIsTerminal(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	refused := make(chan controlplane.Refusal, 10)
	plane, server := serve(t, controlplane.Options{
		Policy: by.policy, OnRefused: func(_ controlplane.Attachment, r controlplane.Refusal) { refused <- r },
	})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	a := d.Attach(t, "/a", named("a"))
	d.Refuse(func(string, *policy.Policy) error { return errors.New("no room") })
	by.set("a", allow("10.2.0.0/16"))
	for range 3 {
		outcome := wait(t, plane, plane.Refresh(controlplane.Selector{}))
		if outcome.Refused != 1 || len(outcome.Listed) != 1 || !strings.Contains(outcome.Listed[0].Error, "no room") {
			t.Errorf("outcome %+v", outcome)
		}
	}
	if n := d.Commands()["bulk_update"]; n != 1 {
		t.Errorf("sent %d times", n)
	}
	if r := <-refused; !strings.Contains(r.String(), "no room") || r.Revision == "" {
		t.Errorf("refusal %+v", r)
	}
	if !allows("10.1.0.0/16")(d.Policy(a)) {
		t.Errorf("in force %+v", d.Policy(a))
	}
	d.Refuse(nil)
	by.set("a", allow("10.3.0.0/16"))
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Applied != 1 {
		t.Errorf("outcome %+v", outcome)
	}
	// Back to what was refused before: the daemon may have room now, and it is another decision than the last.
	by.set("a", allow("10.2.0.0/16"))
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Applied != 1 {
		t.Errorf("outcome %+v", outcome)
	}
}
