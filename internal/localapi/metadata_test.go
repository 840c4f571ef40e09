// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"maps"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
)

func TestSetMetadata(t *testing.T) {
	e := newEnv(t, state.Limits{MetadataBytes: 16})
	id := e.attach(t, "eth0", "job-7")
	want := map[string]string{"tenant": "b"}
	got, err := e.client.SetMetadata(t.Context(), &netfencev1.SetMetadataRequest{Key: "job-7", Metadata: want})
	if err != nil || got.GetAttachment().GetId() != id || !maps.Equal(got.GetAttachment().GetMetadata(), want) {
		t.Errorf("got %v, %v", got, err)
	}
	if told := e.subscriber.told(); !slices.Equal(told, []string{id}) {
		t.Errorf("the control plane was told of %v", told)
	}
	for _, c := range []struct {
		ask  *netfencev1.SetMetadataRequest
		code codes.Code
		text string
	}{
		{&netfencev1.SetMetadataRequest{Id: id, Metadata: map[string]string{"": "x"}}, codes.InvalidArgument, "set metadata: metadata: a name is empty"},
		{
			&netfencev1.SetMetadataRequest{Id: id, Metadata: map[string]string{"tenant": "123456"}}, codes.InvalidArgument,
			"set metadata of " + id + ": bytes of key and metadata: 17, at most 16 (limits.metadata_bytes)",
		},
		{&netfencev1.SetMetadataRequest{Id: "x"}, codes.NotFound, "set metadata: attachment x: no such attachment (see `netfenced list`)"},
		{&netfencev1.SetMetadataRequest{}, codes.InvalidArgument, "set metadata: name one attachment, by id or by key"},
	} {
		_, err := e.client.SetMetadata(t.Context(), c.ask)
		wantStatus(t, err, c.code, c.text)
	}
	if a, _, err := e.store.Get(id); err != nil || !maps.Equal(a.Metadata, want) {
		t.Errorf("after refusals: %v, %v", a.Metadata, err)
	}
	if told := e.subscriber.told(); len(told) != 1 {
		t.Errorf("the control plane was told of %v", told)
	}
}
