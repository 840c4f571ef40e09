// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

// An attach by name needs no control plane, which is told of it all the same, and may change it.
func TestAttachPolicyName(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.subscriber.set(func(s *fakeSubscriber) { s.err = &SubscribeError{Reason: SubscribeUnavailable, Err: errKernel} })
	if _, err := e.store.PutNamed("test", state.Named{Name: "agents", Revision: "a1", Policy: &policy.Policy{Mode: policy.ModeDenylist}}); err != nil {
		t.Fatal(err)
	}
	r := attachInterface("eth0", "job-7")
	r.PolicyName = "agents"
	got, err := e.client.Attach(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if mode, ok := e.kernel.mode(got.GetId()); !ok || mode != policy.ModeDenylist {
		t.Errorf("when Attach returned: mode %v, in the kernel %v", mode, ok)
	}
	if a, _, err := e.store.Get(got.GetId()); err != nil || a.OwnPolicy || a.Pending || a.Held || a.PolicyName != "agents" || a.PolicyRevision != "a1" {
		t.Errorf("%+v, %v", a, err)
	}
	if told := e.subscriber.told(); !slices.Equal(told, []string{got.GetId()}) {
		t.Errorf("the control plane was told of %v", told)
	}
	if again, err := e.client.Attach(t.Context(), r); err != nil || again.GetCreated() || again.GetId() != got.GetId() {
		t.Errorf("again: %v, %v", again, err)
	}
}

func TestAttachPolicyNameRefused(t *testing.T) {
	e := newEnv(t, state.Limits{})
	attach := func(name string, edit func(*netfencev1.AttachRequest)) error {
		r := attachInterface("eth0", "")
		r.PolicyName = name
		if edit != nil {
			edit(r)
		}
		_, err := e.client.Attach(t.Context(), r)
		return err
	}
	wantStatus(t, attach("agents", nil), codes.NotFound, `attach: policy_name: the control plane has sent no policy "agents" (it has sent none by name)`)
	for _, name := range strings.Fields("a b c d e f g h i") {
		if _, err := e.store.PutNamed("test", state.Named{Name: name, Revision: "1", Policy: policy.BlockAll()}); err != nil {
			t.Fatal(err)
		}
	}
	missing := `attach: policy_name: the control plane has sent no policy "agents" (it has sent a, b, c, d, e, f, g, h, …)`
	wantStatus(t, attach("agents", nil), codes.NotFound, missing)
	wantStatus(t, attach("agents", func(r *netfencev1.AttachRequest) { r.DryRun = true }), codes.NotFound, missing)
	wantStatus(t, attach("a", func(r *netfencev1.AttachRequest) { r.Policy = &netfencev1.BulkUpdate{Mode: denylist} }), codes.InvalidArgument,
		"attach: policy_name does not go with policy (leave one of them out)")
	wantStatus(t, attach(strings.Repeat("a", 257), nil), codes.InvalidArgument, "attach: policy_name: longer than 256 bytes")
	e.nothingLeft(t)

	e = newEnv(t, state.Limits{}, func(o *Options) { o.Embedded = true })
	wantStatus(t, attach("a", nil), codes.FailedPrecondition,
		"attach: policy_name: the policies of a folder have no names to attach by (give metadata that one matches, or policy)")
}
