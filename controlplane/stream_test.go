// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

// What a daemon has is not sent again when it comes back; what changed meanwhile is.
func TestReconnect(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	by.set("b", allow("10.2.0.0/16"))
	gone := make(chan controlplane.Detached, 1)
	plane, server := serve(t, controlplane.Options{
		Policy: by.policy, OnDetach: func(_ controlplane.Attachment, d controlplane.Detached) { gone <- d },
	})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	a, b := d.Attach(t, "/a", named("a")), d.Attach(t, "/b", named("b"))
	wait(t, plane, plane.Refresh(controlplane.Selector{}))
	d.Disconnect()
	by.set("b", allow("10.3.0.0/16"))
	connected(t, plane, "d", false)
	change := plane.Refresh(controlplane.Selector{})
	if outcome := wait(t, plane, change); outcome.Disconnected != 2 || len(outcome.Listed) != 2 || outcome.OK() {
		t.Errorf("outcome without a stream: %+v", outcome)
	}
	waits := d.Subscribe("/c", named("a")) // nobody hears it now
	if err := d.Reconnect(); err != nil {
		t.Fatal(err)
	}
	d.WaitPolicy(t, waits, allows("10.1.0.0/16"))
	if outcome := wait(t, plane, change); outcome.Applied != 2 {
		t.Errorf("outcome after it came back: %+v", outcome)
	}
	if !allows("10.1.0.0/16")(d.Policy(a)) || !allows("10.3.0.0/16")(d.Policy(b)) {
		t.Errorf("got %+v and %+v", d.Policy(a), d.Policy(b))
	}
	if got := d.Commands(); got["bulk_update"] != 1 {
		t.Errorf("sent %v", got)
	}
	d.Detach(b)
	if got := <-gone; got.Reason != controlplane.ReasonDetached {
		t.Errorf("detached: %+v", got)
	}
	if outcome := wait(t, plane, change); outcome.Gone != 1 || outcome.Applied != 1 {
		t.Errorf("outcome of what is gone: %+v", outcome)
	}
}

// eventually waits for what has no event.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	end := time.NewTimer(controlplanetest.Patience)
	defer end.Stop()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !so() {
		select {
		case <-again.C:
		case <-end.C:
			t.Fatalf("%s: not so within %s", what, controlplanetest.Patience)
		}
	}
}

// connected waits until the daemon's stream stands, or has ended.
func connected(t *testing.T, plane *controlplane.ControlPlane, id string, want bool) controlplane.Daemon {
	t.Helper()
	var found controlplane.Daemon
	eventually(t, fmt.Sprintf("%s: connected %v", id, want), func() bool {
		for _, found = range plane.Daemons() {
			if found.ID == id && found.Connected == want {
				return true
			}
		}
		return false
	})
	return found
}

// The newest stream of a daemon wins, be it another connection or another process that says it is the same.
func TestNewestStreamWins(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	plane, server := serve(t, controlplane.Options{Policy: by.policy})
	first := server.Connect(t, controlplanetest.Config{ID: "d"})
	ended := make(chan error, 1)
	go func() { ended <- first.Ended() }()
	second := server.Connect(t, controlplanetest.Config{ID: "d"})
	if err := <-ended; status.Code(err) != codes.Aborted {
		t.Errorf("the older stream ended with %v", err)
	}
	second.Attach(t, "/a", named("a"))
	if all := plane.Daemons(); len(all) != 1 || !all[0].Connected || all[0].Attachments != 1 {
		t.Errorf("daemons %+v", all)
	}
}

// A daemon that knows only the published protocol is sent nothing else, and what would narrow is refused here.
func TestPublishedDaemon(t *testing.T) {
	ports := allow("10.1.0.0/16")
	ports.Allow[0].Ports = []policy.Ports{{First: 443, Last: 443}}
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	by.set("ports", ports)
	refused := make(chan controlplane.Refusal, 2)
	plane, server := serve(t, controlplane.Options{
		Policy: by.policy, OnRefused: func(_ controlplane.Attachment, r controlplane.Refusal) { refused <- r },
	})
	d := server.Connect(t, controlplanetest.Config{ID: "d", Published: true})
	a := d.Attach(t, "/a", named("a"))
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Sent != 1 || outcome.Applied != 0 {
		t.Errorf("outcome %+v", outcome)
	}
	b := d.Subscribe("/b", named("ports"))
	if r := <-refused; len(r.Violations) != 1 || r.Violations[0].Field != "allow_cidrs[0].ports" {
		t.Errorf("refusal %+v", r)
	}
	if got := d.Policy(b); got.Mode != policy.ModeBlockAll {
		t.Errorf("got %+v", got)
	}
	by.set("a", ports)
	outcome := wait(t, plane, plane.Refresh(controlplane.Selector{}))
	if outcome.Refused != 2 {
		t.Errorf("outcome %+v", outcome)
	}
	if !allows("10.1.0.0/16")(d.Policy(a)) || len(d.Policy(a).Allow[0].Ports) > 0 {
		t.Errorf("got %+v", d.Policy(a))
	}
	if got := d.Commands(); got["subscribed_ack"] != 1 || got["bulk_update"] != 0 || got["put_policy"] != 0 {
		t.Errorf("sent %v", got)
	}
}

// A policy larger than the daemon takes is refused here: sent, it would end the stream, and again after each reconnect.
func TestTooLargeACommand(t *testing.T) {
	var by decisions
	large := allow("10.1.0.0/16")
	for i := range 1000 {
		large.Allow = append(large.Allow, policy.Rule{Prefix: allow("10.0.0.0/8").Allow[0].Prefix, TTL: time.Duration(i+1) * time.Second})
	}
	by.set("a", allow("10.1.0.0/16"))
	plane, server := serve(t, controlplane.Options{Policy: by.policy})
	d := server.Connect(t, controlplanetest.Config{ID: "d", MaxCommandBytes: 8 << 10})
	a := d.Attach(t, "/a", named("a"))
	by.set("a", large)
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{})); outcome.Refused != 1 {
		t.Errorf("outcome %+v", outcome)
	}
	if !allows("10.1.0.0/16")(d.Policy(a)) {
		t.Errorf("got %+v", d.Policy(a))
	}
}

func TestAuthorize(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	plane, server := serve(t, controlplane.Options{
		Policy: by.policy,
		DNS: func(_ context.Context, q controlplane.Query) (controlplane.Answer, error) {
			return controlplane.Answer{Allow: q.Name == "pypi.org." && q.Attachment.DaemonID == "d", TTL: time.Minute}, nil
		},
		Authorize: func(_ context.Context, p controlplane.Peer) error {
			if p.Token != "secret of "+p.DaemonID {
				return errors.New("token is not that daemon's")
			}
			return nil
		},
	})
	d := server.Connect(t, controlplanetest.Config{ID: "d", Token: "secret of d"})
	id := d.Attach(t, "/a", named("a"))
	other := controlplanetest.New(server.Dial(t), controlplanetest.Config{ID: "d", Token: "secret of e"})
	if err := other.Reconnect(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another daemon that says it is d: %v", err)
	}
	if answer, err := d.Query(t.Context(), id, "pypi.org.", "A"); err != nil || !answer.GetAllow() || answer.GetTtlSeconds() != 60 {
		t.Errorf("query: %v, %v", answer, err)
	}
	if _, err := other.Query(t.Context(), id, "pypi.org.", "A"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another daemon asks for d's attachment: %v", err)
	}
	// Another daemon that claims the id too asks for itself, and does not stand in the way.
	claims := server.Connect(t, controlplanetest.Config{ID: "e", Token: "secret of e"})
	attached := &netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Subscribed{Subscribed: &netfencev1.Subscribed{Id: id, Target: "/claimed"}}}
	claims.Tell(attached)
	eventually(t, "the claim is heard", func() bool { return len(slices.Collect(plane.Attachments(controlplane.Selector{ID: id}))) == 2 })
	for range 10 {
		if answer, err := d.Query(t.Context(), id, "pypi.org.", "A"); err != nil || !answer.GetAllow() {
			t.Errorf("query of the one: %v, %v", answer, err)
		}
	}
	if _, err := d.Query(t.Context(), "nobody's", "pypi.org.", "A"); status.Code(err) != codes.NotFound {
		t.Errorf("query of an unknown id: %v", err)
	}
}

// Shutdown sends away who knows how to go, ends the others, waits for both, and lets nobody in meanwhile.
func TestShutdown(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	var mu sync.Mutex
	var left []string
	plane, server := serve(t, controlplane.Options{
		Policy: by.policy,
		OnDisconnect: func(d controlplane.Daemon) {
			mu.Lock()
			defer mu.Unlock()
			if d.Err == nil {
				left = append(left, d.ID)
			}
		},
	})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	d.Attach(t, "/a", named("a"))
	published := server.Connect(t, controlplanetest.Config{ID: "published", Published: true})
	ended := make(chan error, 1)
	go func() { ended <- published.Ended() }()
	if err := plane.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("a published daemon's stream ended with %v", err)
	}
	if d.Commands()["go_away"] != 1 || !slices.Equal(left, []string{"d"}) {
		t.Errorf("sent %v; left by themselves: %v", d.Commands(), left)
	}
	if err := d.Reconnect(); status.Code(err) != codes.Unavailable {
		t.Errorf("a new stream: %v", err)
	}
}

// A policy of Set stands above Options.Policy, also over a reconnect, until it is taken back.
func TestSet(t *testing.T) {
	var by decisions
	by.set("a", allow("10.1.0.0/16"))
	plane, server := serve(t, controlplane.Options{Policy: by.policy})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	a := d.Attach(t, "/a", named("a"))
	if outcome := wait(t, plane, plane.Set(a, allow("10.9.0.0/16"))); outcome.Applied != 1 || !allows("10.9.0.0/16")(d.Policy(a)) {
		t.Errorf("outcome %+v, policy %+v", outcome, d.Policy(a))
	}
	if err := d.Reconnect(); err != nil {
		t.Fatal(err)
	}
	if wait(t, plane, plane.Refresh(controlplane.Selector{})); !allows("10.9.0.0/16")(d.Policy(a)) {
		t.Errorf("after a reconnect %+v", d.Policy(a))
	}
	if wait(t, plane, plane.Set(a, nil)); !allows("10.1.0.0/16")(d.Policy(a)) {
		t.Errorf("taken back %+v", d.Policy(a))
	}
}

// Without a decision an attachment keeps what it has, and a new one stays closed, until there is one.
func TestUndecided(t *testing.T) {
	var by decisions
	by.before = func(a controlplane.Attachment) error {
		if a.Metadata["p"] == "broken" {
			return errors.New("database is away")
		}
		return nil
	}
	plane, server := serve(t, controlplane.Options{Policy: by.policy})
	d := server.Connect(t, controlplanetest.Config{ID: "d"})
	a, broken := d.Subscribe("/a", named("a")), d.Subscribe("/b", named("broken"))
	for len(slices.Collect(plane.Attachments(controlplane.Selector{}))) < 2 { //nolint:revive // until it has heard of both
	}
	outcome := wait(t, plane, plane.Refresh(controlplane.Selector{}))
	if outcome.Undecided != 2 || len(outcome.Listed) != 2 || outcome.Listed[1].Error != "database is away" {
		t.Errorf("outcome %+v", outcome)
	}
	if d.Policy(a).Mode != policy.ModeBlockAll || d.Policy(broken).Mode != policy.ModeBlockAll {
		t.Errorf("got %+v, %+v", d.Policy(a), d.Policy(broken))
	}
	by.set("a", allow("10.1.0.0/16"))
	if outcome := wait(t, plane, plane.Refresh(controlplane.Selector{Metadata: named("a")})); outcome.Applied != 1 {
		t.Errorf("outcome %+v", outcome)
	}
	if !allows("10.1.0.0/16")(d.Policy(a)) {
		t.Errorf("got %+v", d.Policy(a))
	}
}
