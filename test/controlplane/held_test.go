// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/internal/testenv"
)

const longAck = "NETFENCE_CONTROL_PLANE_SUBSCRIBE_ACK_TIMEOUT=1h"

// A stream that breaks while somebody waits in Attach costs nothing: the next one announces the attachment again.
func TestStreamEndsDuringAttach(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromPublished, longAck)
	attached := d.Go(t, "attach", "--cgroup", testenv.NewCgroup(t).Path)
	id := p.Subscribed().ID
	p.End(codes.Unavailable)
	if request := p.Connect(); len(request.Attachments) != 0 {
		t.Errorf("SyncRequest has %+v, which is pending", request.Attachments)
	}
	if got := p.Subscribed(); got.ID != id {
		t.Errorf("Subscribed %+v, want %s", got, id)
	}
	p.Send(`{"id": %q, "subscribed_ack": {"mode": "POLICY_MODE_ALLOWLIST"}}`, id)
	if r := <-attached; r.Code != 0 || r.Stdout != id+"\n" {
		t.Errorf("attach: %+v", r)
	}
}

// A daemon that is killed while somebody waits in Attach takes the attachment back when it starts again: its caller never
// learned the id. Until then it is closed.
func TestKilledDuringAttach(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished, longAck)
	before := traces(t, d)
	attached := d.Go(t, "attach", "--interface", w.Link)
	id := p.Subscribed().ID
	d.Kill(t)
	p.Ended()
	if r := <-attached; r.Code != 1 || r.Stdout != "" {
		t.Errorf("attach: %+v", r)
	}
	blocked(t, workload, "198.51.100.1")

	d.Start(t)
	if request := p.Connect(); len(request.Attachments) != 0 {
		t.Errorf("SyncRequest has %+v", request.Attachments)
	}
	if got := p.Unsubscribed(); got.ID != id || got.Reason != reasonError {
		t.Errorf("got %+v, want ERROR of %s", got, id)
	}
	passes(t, workload, "198.51.100.1")
	if after := traces(t, d); !slices.Equal(after, before) {
		t.Errorf("left behind: %q, before there was %q", after, before)
	}
	attach(t, d, p, `{"mode": "POLICY_MODE_BLOCK_ALL"}`, "--interface", w.Link)
}
