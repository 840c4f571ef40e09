// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/internal/state"
)

// What is inherited is learned before Attach returns, once, and an attach that cannot inherit leaves nothing behind.
func TestAttachInherits(t *testing.T) {
	var told [][2]string
	var fails error
	e := newEnv(t, state.Limits{}, func(o *Options) {
		o.Inherit = func(_ context.Context, from, to string) error {
			told = append(told, [2]string{from, to})
			return fails
		}
	})
	first, err := e.client.Attach(t.Context(), attachInterface("eth0", ""))
	if err != nil {
		t.Fatal(err)
	}
	r := attachInterface("eth1", "copy")
	r.InheritLearnedFrom = first.GetId()
	fails = errors.New("no room")
	_, err = e.client.Attach(t.Context(), r)
	wantStatus(t, err, codes.Internal, "attach interface eth1: inherit_learned_from: no room")
	if n := e.store.Len(); n != 1 {
		t.Errorf("%d attachments, want the first", n)
	}
	fails = nil
	second, err := e.client.Attach(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != 2 || told[1] != [2]string{first.GetId(), second.GetId()} {
		t.Errorf("inherited: %v", told)
	}
	if again, err := e.client.Attach(t.Context(), r); err != nil || again.GetCreated() || len(told) != 2 {
		t.Errorf("again: %v, %v, inherited %d times", again, err, len(told))
	}
}
