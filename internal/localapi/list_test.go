// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

func TestList(t *testing.T) {
	e := newEnv(t, state.Limits{})
	var want []string
	for i := range 5 {
		want = append(want, e.attach(t, fmt.Sprintf("eth%d", i), ""))
	}
	page := func(size int32, token string) *netfencev1.ListResponse {
		t.Helper()
		r, err := e.client.List(t.Context(), &netfencev1.ListRequest{PageSize: size, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ids := func(r *netfencev1.ListResponse) (ids []string) {
		for _, a := range r.GetAttachments() {
			ids = append(ids, a.GetId())
		}
		return ids
	}
	for _, size := range []int32{0, 5, 5000} {
		if r := page(size, ""); !reflect.DeepEqual(ids(r), want) || r.GetNextPageToken() != "" || r.GetTotalCount() != 5 {
			t.Errorf("page size %d: %v", size, r)
		}
	}
	first := page(2, "")
	if !reflect.DeepEqual(ids(first), want[:2]) {
		t.Errorf("first page: %v", ids(first))
	}
	// What the page before ended with may be gone.
	if _, err := e.client.Detach(t.Context(), &netfencev1.DetachRequest{Id: want[1]}); err != nil {
		t.Fatal(err)
	}
	second := page(2, first.GetNextPageToken())
	if !reflect.DeepEqual(ids(second), want[2:4]) || second.GetTotalCount() != 4 {
		t.Errorf("second page: %v", second)
	}
	if last := page(2, second.GetNextPageToken()); !reflect.DeepEqual(ids(last), want[4:]) || last.GetNextPageToken() != "" {
		t.Errorf("last page: %v", last)
	}

	_, err := e.client.List(t.Context(), &netfencev1.ListRequest{PageSize: -1})
	wantStatus(t, err, codes.InvalidArgument, "list: page_size -1 is negative")
	for _, token := range []string{"?", "bm90aGluZw"} {
		_, err = e.client.List(t.Context(), &netfencev1.ListRequest{PageToken: token})
		wantStatus(t, err, codes.InvalidArgument, "list: page_token is not one that this daemon gave (start from the first page)")
	}
}

func TestListPagesFitTheirMessage(t *testing.T) {
	e := newEnv(t, state.Limits{MetadataBytes: 2 << 20})
	for i := range 3 {
		r := attachInterface(fmt.Sprintf("eth%d", i), "")
		r.Metadata = map[string]string{"a": strings.Repeat("x", 2<<20-1)}
		if _, err := e.client.Attach(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	request, total := &netfencev1.ListRequest{}, 0
	for {
		page, err := e.client.List(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		total += len(page.GetAttachments())
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			break
		}
	}
	if total != 3 {
		t.Errorf("%d attachments on all pages", total)
	}
}

func TestGet(t *testing.T) {
	e := newEnv(t, state.Limits{})
	r, err := e.client.Attach(t.Context(), &netfencev1.AttachRequest{
		Target: &netfencev1.AttachRequest_InterfaceName{InterfaceName: "eth0"}, Key: "job-7",
		Metadata: map[string]string{"tenant": "acme"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []*netfencev1.GetRequest{{Id: r.GetId()}, {Key: "job-7"}} {
		got, err := e.client.Get(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		info := got.GetAttachment()
		if info.GetId() != r.GetId() || info.GetTarget() != "eth0" || info.GetMetadata()["tenant"] != "acme" ||
			info.GetType() != netfencev1.AttachmentType_ATTACHMENT_TYPE_TC ||
			info.GetDirection() != netfencev1.Direction_DIRECTION_INGRESS ||
			info.GetMode() != netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST ||
			info.GetPacketsAllowed() != 12 || info.GetPacketsBlocked() != 3 || !info.GetAttachedAt().IsValid() ||
			info.GetDrops()["no-rule"] != 3 || info.GetWouldDeny()["deny-rule"] != 6 || info.GetDnsQueriesWouldDeny() != 1 {
			t.Errorf("attachment: %v", info)
		}
		if got.GetPolicy().GetMode() != netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST || got.GetApplied().GetRevision() != "r1" ||
			got.GetDrops()["no-rule"] != 3 || got.GetFlowsUnnoted() != 4 || got.GetKey() != "job-7" || got.GetPending() || got.GetLastError() != "" {
			t.Errorf("got %v", got)
		}
	}

	// A refused change is told of, and what is shown is still what is in force.
	e.kernel.set(errKernel, false)
	revision, err := e.store.Apply(r.GetId(), "test", state.Change{
		Edit: state.Replace(&policy.Policy{Mode: policy.ModeDenylist}), PolicyRevision: "r2",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.store.Wait(t.Context(), r.GetId(), revision); err == nil {
		t.Fatal("not refused")
	}
	got, err := e.client.Get(t.Context(), &netfencev1.GetRequest{Key: "job-7"})
	if err != nil || got.GetPolicy().GetMode() != netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST ||
		got.GetApplied().GetRevision() != "r1" || got.GetLastError() != errKernel.Error() {
		t.Errorf("after a refusal: %v, %v", got, err)
	}
	st, err := e.client.GetStatus(t.Context(), &emptypb.Empty{})
	if err != nil || st.GetAttachmentCount() != 1 || st.GetDaemonId() != "node-1" || st.GetControlPlaneAddress() != "localhost:9000" ||
		!reflect.DeepEqual(st.GetProblems(), []string{"first", "attachment " + r.GetId() + " (interface eth0): " + errKernel.Error()}) {
		t.Errorf("status: %v, %v", st, err)
	}

	if want := (&netfencev1.Counters{
		PacketsAllowed: 120, PacketsBlocked: 30, Drops: map[string]uint64{"no-rule": 30}, WouldDeny: map[string]uint64{"deny-rule": 60},
		DnsQueriesAllowed: 50, DnsQueriesBlocked: 20, DnsQueriesWouldDeny: 10,
	}); !proto.Equal(st.GetCounters(), want) {
		t.Errorf("status sums to %v, want %v", st.GetCounters(), want)
	}

	_, err = e.client.Get(t.Context(), &netfencev1.GetRequest{})
	wantStatus(t, err, codes.InvalidArgument, "get: name one attachment, by id or by key")
	_, err = e.client.Get(t.Context(), &netfencev1.GetRequest{Id: "a"})
	wantStatus(t, err, codes.NotFound, "get: attachment a: no such attachment (see `netfenced list`)")
}

func TestDetach(t *testing.T) {
	e := newEnv(t, state.Limits{})
	id := e.attach(t, "eth0", "")
	e.attach(t, "eth1", "job-7")
	e.attach(t, "eth2", "")
	e.attach(t, "eth3", "")
	for _, request := range []*netfencev1.DetachRequest{{Id: id}, {Key: "job-7"}, {All: true}, {All: true}, {Id: id, MissingOk: true}} {
		if _, err := e.client.Detach(t.Context(), request); err != nil {
			t.Errorf("%v: %v", request, err)
		}
	}
	e.nothingLeft(t)
	for _, gone := range e.store.Gone() {
		if gone.Reason != state.ReasonDetached {
			t.Errorf("the control plane is told %v", gone.Reason)
		}
	}
	_, err := e.client.Detach(t.Context(), &netfencev1.DetachRequest{Id: id})
	wantStatus(t, err, codes.NotFound, "detach: attachment "+id+": no such attachment (see `netfenced list`)")
	_, err = e.client.Detach(t.Context(), &netfencev1.DetachRequest{Key: "job-7"})
	wantStatus(t, err, codes.NotFound, "detach: attachment with key job-7: no such attachment (see `netfenced list`)")
	for _, request := range []*netfencev1.DetachRequest{{}, {Id: "a", Key: "b"}, {Id: "a", All: true}} {
		if _, err := e.client.Detach(t.Context(), request); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", request, err)
		}
	}
}

func TestDetachKernelStuck(t *testing.T) {
	e := newEnv(t, state.Limits{})
	id := e.attach(t, "eth0", "")
	e.stuck()
	_, err := e.client.Detach(t.Context(), &netfencev1.DetachRequest{Id: id})
	if st := status.Convert(err); st.Code() != codes.DeadlineExceeded || !strings.Contains(st.Message(), "the kernel did not follow within") {
		t.Errorf("got %v", err)
	}
}

func TestHealth(t *testing.T) {
	e := newEnv(t, state.Limits{})
	r, err := healthv1.NewHealthClient(e.conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v", r, err)
	}
}
