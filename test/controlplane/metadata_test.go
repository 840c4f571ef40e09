// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"maps"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/test/harness"
)

// welcome is the answer of a peer that says that it knows our additions.
const welcome = `{"sync_ack": {"welcome": {"server_id": "test"}}}`

// New metadata are told as the attachment was, with what is in force where the peer reads that, and survive a kill. A
// published control plane answers as it does to any Subscribed, which is then the policy.
func TestSetMetadata(t *testing.T) {
	t.Parallel()
	for _, from := range []string{builtFromOurs, builtFromPublished} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			d, p := start(t, nil, from)
			id := attachCgroup(t, d, p)
			if from == builtFromOurs {
				p.End(codes.Unavailable)
				p.Sync()
				p.Send(welcome)
				checkResult(t, p, id, `"revision": "r1", "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST"}`, "APPLIED", "r1", "")
			}
			want := map[string]string{"tenant": "b"}
			d.Must(t, "set", id, "--metadata", "tenant=b")
			told := p.Subscribed()
			if told.ID != id || !maps.Equal(told.Metadata, want) || told.Mode != "POLICY_MODE_ALLOWLIST" {
				t.Errorf("told %+v", told)
			}
			if from == builtFromOurs && (told.Applied == nil || told.Applied.Revision != "r1") {
				t.Errorf("applied %+v", told.Applied)
			}
			p.Send(`{"id": %q, "subscribed_ack": {"mode": "POLICY_MODE_DENYLIST"}}`, id)
			await(t, d, id, "the policy for it", func(s harness.Shown) bool { return words(s.Policy) == "denylist, dns disabled" })

			d.Kill(t)
			p.Ended()
			d.Start(t)
			if s := p.Connect(); len(s.Attachments) != 1 || !maps.Equal(s.Attachments[0].Metadata, want) {
				t.Errorf("after a restart: %+v", s.Attachments)
			}

			// While nobody is there, the next stream tells.
			p.Stop()
			d.Must(t, "set", id, "--no-metadata")
			p.Start()
			if s := p.Connect(); len(s.Attachments) != 1 || len(s.Attachments[0].Metadata) != 0 {
				t.Errorf("after a reconnect: %+v", s.Attachments)
			}
		})
	}
}
