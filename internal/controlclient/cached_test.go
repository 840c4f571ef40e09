// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

// Nobody to ask: what the key had last is in force when the attach returns, and is the control plane's to change.
func TestAttachWithTheCachedPolicy(t *testing.T) {
	var reachable chan struct{} // belongs to the bubble
	var dial func(context.Context, string) (Conn, error)
	bubble(t, func(h *harness) {
		synctest.Wait()
		h.create(state.Attachment{ID: "1", Key: "job", Pending: true, Held: true})
		if err := <-h.subscribe("1"); err != nil || h.allows("1") != "192.0.2.0/24" {
			t.Errorf("%v, in force %v", err, h.inForce("1"))
		}
		for id, want := range map[string]string{"other": "no route to host", "": "no route to host", "broken": "unreadable"} {
			h.create(state.Attachment{ID: "of-" + id, Key: id, Pending: true, Held: true})
			var unavailable *UnavailableError
			if err := <-h.subscribe("of-" + id); !errors.As(err, &unavailable) || !strings.Contains(err.Error(), want) {
				t.Errorf("key %q: %v", id, err)
			}
		}
		close(reachable)
		s, sync := h.connect()
		if len(sync.GetAttachments()) != 1 || sync.GetAttachments()[0].GetApplied().GetRevision() != "" {
			t.Errorf("told of %v", sync.GetAttachments())
		}
		for range 3 {
			if gone := s.recv().GetUnsubscribed(); !strings.HasPrefix(gone.GetId(), "of-") {
				t.Errorf("got %v", gone)
			}
		}
		cmd := put(1, "base", "b1", "198.51.100.0/24")
		s.send(cmd)
		s.recv()
		s.want(use("1", 2, "base", ""), applied, "b1")
		if h.allows("1") != "198.51.100.0/24" {
			t.Errorf("in force %v", h.inForce("1"))
		}
	}, func(o *Options) {
		o.WhenUnreachable, reachable = UnreachableCached, make(chan struct{})
		o.Cached = func(key string) (*policy.Policy, error) {
			switch key {
			case "job":
				return &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}}, nil
			case "broken":
				return nil, errors.New("unreadable")
			}
			return nil, nil
		}
		dial = o.Dial
		o.Dial = func(ctx context.Context, address string) (Conn, error) {
			select {
			case <-reachable:
				return dial(ctx, address)
			default:
				return nil, errors.New("no route to host")
			}
		}
	})
}
