// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// allow is a policy that allows one prefix.
func allow(prefix string) *policy.Policy {
	return &policy.Policy{
		Mode: policy.ModeAllowlist, Allow: []policy.Rule{{Prefix: netip.MustParsePrefix(prefix)}},
		DNS: policy.DNS{Mode: policy.DNSDisabled},
	}
}

// allows tells whether a policy is that of allow.
func allows(prefix string) func(*policy.Policy) bool {
	return func(p *policy.Policy) bool { return len(p.Allow) == 1 && p.Allow[0].Prefix.String() == prefix }
}

// decisions are policies by metadata "p", to be changed while they are asked for.
type decisions struct {
	mu     sync.Mutex
	by     map[string]*policy.Policy
	asked  int
	before func(controlplane.Attachment) error
}

func (d *decisions) set(name string, p *policy.Policy) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by == nil {
		d.by = make(map[string]*policy.Policy)
	}
	d.by[name] = p
}

func (d *decisions) policy(_ context.Context, a controlplane.Attachment) (*policy.Policy, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	if d.before != nil {
		if err := d.before(a); err != nil {
			return nil, err
		}
	}
	return d.by[a.Metadata["p"]], nil
}

func named(name string) map[string]string { return map[string]string{"p": name} }

func serve(t *testing.T, opts controlplane.Options) (*controlplane.ControlPlane, *controlplanetest.Server) {
	t.Helper()
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	plane, err := controlplane.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return plane, controlplanetest.Serve(t, plane)
}

func wait(t *testing.T, plane *controlplane.ControlPlane, change controlplane.Change) controlplane.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), controlplanetest.Patience)
	defer cancel()
	outcome, err := plane.Wait(ctx, change)
	if err != nil {
		t.Fatalf("wait: %v, so far %+v", err, outcome)
	}
	return outcome
}
