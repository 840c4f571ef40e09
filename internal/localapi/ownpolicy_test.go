// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

func attachOwn(name, key string, mode netfencev1.PolicyMode, cidrs ...string) *netfencev1.AttachRequest {
	r := attachInterface(name, key)
	r.Policy = &netfencev1.BulkUpdate{Mode: mode}
	for _, cidr := range cidrs {
		r.Policy.AllowCidrs = append(r.Policy.AllowCidrs, &netfencev1.CIDREntry{Cidr: cidr})
	}
	return r
}

const (
	allowlist = netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST
	denylist  = netfencev1.PolicyMode_POLICY_MODE_DENYLIST
)

func TestAttachWithPolicy(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.subscriber.set(func(s *fakeSubscriber) { s.err = &SubscribeError{Reason: SubscribeUnavailable, Err: errKernel} })
	r, err := e.client.Attach(t.Context(), attachOwn("eth0", "", denylist, "10.0.0.1/8"))
	if err != nil {
		t.Fatal(err) // so the control plane, which fails every attach, was not asked
	}
	if !r.GetCreated() || !slices.Equal(r.GetWarnings(), []string{"allow_cidrs[0].cidr: prefix 10.0.0.1/8 has host bits set; taken as 10.0.0.0/8"}) {
		t.Errorf("got %v", r)
	}
	if mode, ok := e.kernel.mode(r.GetId()); !ok || mode != policy.ModeDenylist {
		t.Errorf("when Attach returned: mode %v, in the kernel %v", mode, ok)
	}
	if a, _, err := e.store.Get(r.GetId()); err != nil || !a.OwnPolicy || a.Pending || a.Held {
		t.Errorf("%+v, %v", a, err)
	}
	got, err := e.client.Get(t.Context(), &netfencev1.GetRequest{Id: r.GetId()})
	if err != nil || !got.GetOwnPolicy() || got.GetPolicy().GetMode() != denylist || got.GetApplied().GetRevision() != "" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := e.client.Detach(t.Context(), &netfencev1.DetachRequest{Id: r.GetId()}); err != nil {
		t.Error(err)
	}
	e.nothingLeft(t)
	if gone := e.store.Gone(); len(gone) > 0 {
		t.Errorf("the control plane would be told of %+v", gone)
	}
}

func TestAttachWithPolicyAgain(t *testing.T) {
	e := newEnv(t, state.Limits{})
	r, err := e.client.Attach(t.Context(), attachOwn("eth0", "job-7", denylist))
	if err != nil {
		t.Fatal(err)
	}
	again, err := e.client.Attach(t.Context(), attachOwn("eth0", "job-7", denylist))
	if err != nil || again.GetId() != r.GetId() || again.GetCreated() {
		t.Errorf("retry: %v, %v", again, err)
	}
	dry := attachOwn("eth0", "job-7", allowlist)
	dry.DryRun = true
	if _, err := e.client.Attach(t.Context(), dry); err != nil {
		t.Error(err)
	}
	if mode, _ := e.kernel.mode(r.GetId()); mode != policy.ModeDenylist {
		t.Errorf("after a dry run: mode %v", mode)
	}
	if _, err := e.client.Attach(t.Context(), attachOwn("eth0", "job-7", allowlist)); err != nil {
		t.Error(err)
	}
	if mode, _ := e.kernel.mode(r.GetId()); mode != policy.ModeAllowlist {
		t.Errorf("after another policy: mode %v", mode)
	}

	// Nobody is left to believe in a policy that is not in force.
	_, err = e.client.Attach(t.Context(), attachInterface("eth0", "job-7"))
	wantStatus(t, err, codes.FailedPrecondition, "attach interface eth0: attachment "+r.GetId()+
		" of key job-7 was given a policy of its own (give one, or detach that attachment)")
	id := e.attach(t, "eth1", "job-8")
	_, err = e.client.Attach(t.Context(), attachOwn("eth1", "job-8", denylist))
	wantStatus(t, err, codes.FailedPrecondition, "attach interface eth1: attachment "+id+
		" of key job-8 has its policy from the control plane (give none, or detach that attachment)")
	if n := e.store.Len(); n != 2 {
		t.Errorf("%d attachments", n)
	}
}

func TestAttachRefusesPolicy(t *testing.T) {
	e := newEnv(t, state.Limits{Policy: policy.Limits{Rules: 2}})
	with := func(change func(*netfencev1.BulkUpdate)) *netfencev1.AttachRequest {
		r := attachOwn("eth0", "", allowlist)
		change(r.Policy)
		return r
	}
	newer := attachOwn("eth0", "", allowlist)
	newer.Policy.ProtoReflect().SetUnknown([]byte{0xf8, 0x7f, 1})
	for _, tt := range []struct {
		name    string
		request *netfencev1.AttachRequest
		code    codes.Code
		fields  []string
	}{
		{"two mistakes", attachOwn("eth0", "", 0, "10.0.0.0/33"), codes.InvalidArgument, []string{"policy.mode", "policy.allow_cidrs[0].cidr"}},
		{"unknown field", newer, codes.InvalidArgument, []string{"policy"}},
		{"too many rules", attachOwn("eth0", "", allowlist, "10.0.0.1", "10.0.0.2", "10.0.0.3"), codes.InvalidArgument, []string{"policy.rules"}},
		{
			"proxy", with(func(p *netfencev1.BulkUpdate) { p.Dns = &netfencev1.DnsConfig{Mode: netfencev1.DnsMode_DNS_MODE_PROXY} }),
			codes.InvalidArgument, []string{"policy.dns.mode"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := e.client.Attach(t.Context(), tt.request)
			st := status.Convert(err)
			var fields []string
			for _, detail := range st.Details() {
				fields = append(fields, detail.(*netfencev1.Violation).GetField())
			}
			if st.Code() != tt.code || !slices.Equal(fields, tt.fields) {
				t.Errorf("got %v, violations of %q", err, fields)
			}
		})
	}
	e.nothingLeft(t)
}

func TestAttachWithPolicyRefusedByKernel(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.kernel.set(errKernel, false)
	_, err := e.client.Attach(t.Context(), attachOwn("eth0", "", denylist))
	wantStatus(t, err, codes.FailedPrecondition, "attach interface eth0: revision 1 refused by the kernel: "+errKernel.Error())
	e.nothingLeft(t)
}

func TestSetPolicy(t *testing.T) {
	e := newEnv(t, state.Limits{})
	r, err := e.client.Attach(t.Context(), attachOwn("eth0", "job-7", denylist))
	if err != nil {
		t.Fatal(err)
	}
	set, err := e.client.SetPolicy(t.Context(), &netfencev1.SetPolicyRequest{
		Key: "job-7", Policy: attachOwn("", "", allowlist, "192.0.2.1/24").GetPolicy(),
	})
	if err != nil || len(set.GetWarnings()) != 1 || !proto.Equal(set.GetApplied(), &netfencev1.Applied{}) {
		t.Errorf("got %v, %v", set, err)
	}
	if mode, _ := e.kernel.mode(r.GetId()); mode != policy.ModeAllowlist {
		t.Errorf("mode %v", mode)
	}
	_, err = e.client.SetPolicy(t.Context(), &netfencev1.SetPolicyRequest{Id: r.GetId()})
	wantStatus(t, err, codes.InvalidArgument, "set policy of "+r.GetId()+": policy is missing")
	_, err = e.client.SetPolicy(t.Context(), &netfencev1.SetPolicyRequest{Id: r.GetId(), Policy: &netfencev1.BulkUpdate{}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("mode unset: %v", err)
	}
	_, err = e.client.SetPolicy(t.Context(), &netfencev1.SetPolicyRequest{})
	wantStatus(t, err, codes.InvalidArgument, "set policy: name one attachment, by id or by key")
	id := e.attach(t, "eth1", "")
	_, err = e.client.SetPolicy(t.Context(), &netfencev1.SetPolicyRequest{Id: id, Policy: &netfencev1.BulkUpdate{Mode: denylist}})
	wantStatus(t, err, codes.FailedPrecondition, "set policy: attachment "+id+" has its policy from the control plane (change it there)")
	if mode, _ := e.kernel.mode(r.GetId()); mode != policy.ModeAllowlist {
		t.Errorf("after refusals: mode %v", mode)
	}
}

func TestDNS(t *testing.T) {
	e := newEnv(t, state.Limits{}, func(o *Options) {
		o.DNS = func(string) (string, []string) { return "127.128.0.7:1053", []string{"127.128.0.7"} }
		o.Learned = func(string) []Learned {
			return []Learned{{
				Addr: netip.MustParseAddr("192.0.2.1"), Names: []string{"pypi.org", "files.pypi.org"}, Remaining: 90 * time.Second,
				Ports: []policy.Ports{{First: 443, Last: 443, Protocol: policy.TCP}},
			}, {Addr: netip.MustParseAddr("192.0.2.2"), Names: slices.Repeat([]string{"many.example"}, 100)}}
		}
	})
	r, err := e.client.Attach(t.Context(), attachInterface("eth0", "job-7"))
	if err != nil || r.GetDnsAddress() != "127.128.0.7:1053" || !slices.Equal(r.GetNameservers(), []string{"127.128.0.7"}) {
		t.Errorf("attach: %v, %v", r, err)
	}
	again, err := e.client.Attach(t.Context(), attachInterface("eth0", "job-7"))
	if err != nil || again.GetDnsAddress() != r.GetDnsAddress() || !slices.Equal(again.GetNameservers(), r.GetNameservers()) {
		t.Errorf("attach again: %v, %v", again, err)
	}
	list, err := e.client.List(t.Context(), &netfencev1.ListRequest{})
	if err != nil || len(list.GetAttachments()) != 1 {
		t.Fatalf("list: %v, %v", list, err)
	}
	got, err := e.client.Get(t.Context(), &netfencev1.GetRequest{Id: r.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range []*netfencev1.AttachmentInfo{list.GetAttachments()[0], got.GetAttachment()} {
		if info.GetDnsAddress() != "127.128.0.7:1053" || info.GetDnsQueriesAllowed() != 5 || info.GetDnsQueriesBlocked() != 2 ||
			info.GetDnsMode() != netfencev1.DnsMode_DNS_MODE_ALLOWLIST {
			t.Errorf("got %v", info)
		}
	}
	if len(got.GetLearned()) != 2 || len(got.GetLearned()[1].GetNames()) != 8 {
		t.Fatalf("learned: %v", got.GetLearned())
	}
	l := got.GetLearned()[0]
	if l.GetAddress() != "192.0.2.1" || !reflect.DeepEqual(l.GetNames(), []string{"pypi.org", "files.pypi.org"}) ||
		l.GetRemaining().AsDuration() != 90*time.Second || len(l.GetPorts()) != 1 || l.GetPorts()[0].GetFirst() != 443 {
		t.Errorf("learned: %v", l)
	}
}
