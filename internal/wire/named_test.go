// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

func TestNamedFrom(t *testing.T) {
	got, warnings, err := wire.NamedFrom(command(t, `put_policy { name: "base" revision: "r1" policy { `+rich+` } }`))
	if err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	if got.Ref != (wire.Ref{Name: "base", Revision: "r1"}) || !reflect.DeepEqual(normal(got.Policy), normal(richPolicy)) {
		t.Errorf("got %+v", got)
	}
	sent, err := wire.NamedPolicy(got, wire.Self())
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, "put_policy {}")
	cmd.GetPutPolicy().Name, cmd.GetPutPolicy().Revision, cmd.GetPutPolicy().Policy = sent.GetName(), sent.GetRevision(), sent.GetPolicy()
	if back, _, err := wire.NamedFrom(cmd); err != nil || !reflect.DeepEqual(back, got) {
		t.Errorf("back: %+v, %v", back, err)
	}
}

func TestNamedFromRefuses(t *testing.T) {
	for _, tt := range []struct{ command, field string }{
		{`put_policy { revision: "r" policy { mode: POLICY_MODE_BLOCK_ALL } }`, "put_policy.name"},
		{`put_policy { name: "` + strings.Repeat("n", 257) + `" policy { mode: POLICY_MODE_BLOCK_ALL } }`, "put_policy.name"},
		{`put_policy { name: "n" revision: "` + strings.Repeat("r", 257) + `" policy { mode: POLICY_MODE_BLOCK_ALL } }`, "put_policy.revision"},
		{`put_policy { name: "n" }`, "put_policy.policy"},
		{`put_policy { name: "n" policy {} }`, "put_policy.policy.mode"},
		{`put_policy { name: "n" policy { mode: POLICY_MODE_ALLOWLIST allow_cidrs { cidr: "x" } } }`, "put_policy.policy.allow_cidrs[0].cidr"},
		{`id: "1" put_policy { name: "n" policy { mode: POLICY_MODE_BLOCK_ALL } }`, "id"},
	} {
		_, _, err := wire.NamedFrom(command(t, tt.command))
		if got := wantRefused(t, err).Violations[0].Field; got != tt.field {
			t.Errorf("%s: got %s, want %s", tt.command, got, tt.field)
		}
	}
	for _, text := range []string{`delete_policy: ""`, `id: "1" delete_policy: "n"`} {
		if _, err := wire.NameFrom(command(t, text)); err == nil {
			t.Errorf("%s: taken", text)
		}
	}
	// What package policy finds is told by the path of the field, too.
	list := wire.CommandViolations(command(t, `put_policy {}`), &policy.InvalidError{Field: "allow[2]"})
	if list[0].GetField() != "put_policy.policy.allow_cidrs[2]" {
		t.Errorf("got %v", list)
	}
}

func TestUsePolicy(t *testing.T) {
	for _, text := range []string{`use_policy { name: "base" revision: "r" }`, `subscribed_ack { use_policy { name: "base" revision: "r" } }`} {
		change, err := wire.ChangeFrom(command(t, text))
		if err != nil {
			t.Fatal(err)
		}
		if change.Use == nil || *change.Use != (wire.Ref{Name: "base", Revision: "r"}) || !change.Whole || change.Edit != nil {
			t.Errorf("%s: %+v", text, change)
		}
	}
}

// A published peer is not sent what it would ignore.
func TestNamedPolicyIsGated(t *testing.T) {
	n := wire.Named{Ref: wire.Ref{Name: "base"}, Policy: policy.BlockAll()}
	if _, err := wire.NamedPolicy(n, wire.Peer{}); err == nil {
		t.Error("sent to a published peer")
	}
	if _, err := wire.NamedPolicy(n, wire.NewPeer([]string{"named_policies"})); err != nil {
		t.Error(err)
	}
}
