// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// An orchestrator that was built from the published messages attaches, lists and detaches as it always did.
func TestPublishedLocalClient(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	d := harness.New(t, nil)
	d.Policy(t, "all.yaml", "mode: allowlist\n")
	d.Start(t)
	file, err := published()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call := func(method, request, in, out string) *dynamicpb.Message {
		t.Helper()
		question := dynamicpb.NewMessage(file.Messages().ByName(protoreflect.Name(in)))
		answer := dynamicpb.NewMessage(file.Messages().ByName(protoreflect.Name(out)))
		if err := protojson.Unmarshal([]byte(request), question); err != nil {
			t.Fatal(err)
		}
		if err := conn.Invoke(t.Context(), "/netfence.v1.DaemonService/"+method, question, answer); err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		return answer
	}
	text := func(m protoreflect.Message, field protoreflect.Name) string {
		return m.Get(m.Descriptor().Fields().ByName(field)).String()
	}

	cgroup := testenv.NewCgroup(t).Path
	id := text(call("Attach", `{"cgroup_path": "`+cgroup+`", "metadata": {"tenant": "acme"}}`, "AttachRequest", "AttachResponse"), "id")
	list := call("List", `{}`, "ListRequest", "ListResponse")
	attachments := list.Get(list.Descriptor().Fields().ByName("attachments")).List()
	if attachments.Len() != 1 {
		t.Fatalf("list: %v", list)
	}
	a := attachments.Get(0).Message()
	if text(a, "id") != id || text(a, "target") != cgroup || text(a, "mode") != "2" || text(a, "type") != "2" {
		t.Errorf("list: %v", list)
	}
	if status := call("GetStatus", `{}`, "Empty", "DaemonStatus"); text(status, "attachment_count") != "1" || text(status, "daemon_id") == "" {
		t.Errorf("status: %v", status)
	}
	call("Detach", `{"id": "`+id+`"}`, "DetachRequest", "Empty")
	if left := d.List(t); len(left) != 0 {
		t.Errorf("after detach: %+v", left)
	}
}
