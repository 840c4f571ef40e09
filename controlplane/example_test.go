// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/policy"
)

// A control plane that knows its tenants. Whoever it does not know stays closed.
func Example() {
	agents, err := policy.ParseFile("agents.yaml", []byte("mode: allowlist\nallow: [10.0.0.0/16, pypi.org:443]\n"))
	if err != nil {
		panic(err)
	}
	policies := map[string]*policy.Policy{"acme": agents.Policy}

	plane, err := controlplane.New(controlplane.Options{
		Policy: func(_ context.Context, a controlplane.Attachment) (*policy.Policy, error) {
			return policies[a.Metadata["tenant"]], nil
		},
		OnRefused: func(a controlplane.Attachment, r controlplane.Refusal) {
			fmt.Println(a.DaemonID, a.Target, r)
		},
	})
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer(controlplane.ServerOptions()...) // with grpc.Creds in front of a network
	plane.Register(server)
	// server.Serve(listener)

	// Later: the policies have changed.
	outcome, err := plane.Wait(context.Background(), plane.Refresh(controlplane.Selector{}))
	if err != nil {
		panic(err)
	}
	fmt.Printf("in force for %d, refused by %d\n", outcome.Applied, outcome.Refused)
	// Output: in force for 0, refused by 0
}

// Equal policies have equal revisions, whoever asks.
func ExampleRevision() {
	one, err := controlplane.Revision(policy.BlockAll())
	if err != nil {
		panic(err)
	}
	other, err := controlplane.Revision(&policy.Policy{Mode: policy.ModeBlockAll})
	if err != nil {
		panic(err)
	}
	fmt.Println(one == other)
	// Output: true
}

// A daemon is known by a name in its certificate, here a SPIFFE id.
func ExampleOptions_authorize() {
	_, err := controlplane.New(controlplane.Options{
		Authorize: func(_ context.Context, p controlplane.Peer) error {
			if !slices.Contains(p.Names(), "spiffe://example.org/netfenced/"+p.DaemonID) {
				return errors.New("the certificate is not that daemon's")
			}
			return nil
		},
	})
	fmt.Println(err)
	// Output: <nil>
}
