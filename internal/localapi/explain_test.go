// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// TestExplain: each thing that decides is asked for; which of them decides is for package policy's tests.
func TestExplain(t *testing.T) {
	blocked := ""
	e := newEnv(t, state.Limits{}, func(o *Options) {
		o.Guard = &policy.Guard{Deny: []policy.Rule{{Prefix: netip.MustParsePrefix("169.254.0.0/16")}}}
		o.Blocked = func(string) string { return blocked }
		o.Boot = func() (time.Duration, error) { return time.Hour, nil }
		o.Learned = func(string) []Learned {
			return []Learned{{Addr: netip.MustParseAddr("198.51.100.7"), Names: []string{"pypi.org"}, Remaining: time.Minute}}
		}
	})
	e.subscriber.set(func(s *fakeSubscriber) {
		s.policy = &policy.Policy{
			Mode: policy.ModeAllowlist, Allow: []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
			Deny: []policy.Rule{{Prefix: netip.MustParsePrefix("10.9.0.0/16"), Ports: []policy.Ports{{First: 80, Last: 80, Protocol: policy.UDP}}}},
			DNS:  policy.DNS{Mode: policy.DNSAllowlist, Allow: []policy.DomainRule{{Domain: "pypi.org"}}},
		}
	})
	id := e.attach(t, "eth0", "job-7")
	const udp = netfencev1.Protocol_PROTOCOL_UDP
	for _, c := range []struct {
		ask        *netfencev1.ExplainRequest
		allow      bool
		list, rule string
		reason     string
	}{
		{&netfencev1.ExplainRequest{Destination: "10.1.2.3", Port: 443}, true, "allow", "10.0.0.0/8", "allow rule 1: 10.0.0.0/8"},
		{&netfencev1.ExplainRequest{Destination: "10.9.2.3", Port: 80, Protocol: udp}, false, "deny", "10.9.0.0/16 ports 80/udp", "deny rule 1: 10.9.0.0/16 ports 80/udp"},
		{&netfencev1.ExplainRequest{Destination: "10.9.2.3", Port: 80}, true, "allow", "10.0.0.0/8", "allow rule 1: 10.0.0.0/8"},
		{&netfencev1.ExplainRequest{Destination: "10.1.2.3"}, true, "allow", "10.0.0.0/8", "allow rule 1: 10.0.0.0/8"},
		{&netfencev1.ExplainRequest{Destination: "169.254.169.254", Port: 80}, false, "deny", "169.254.0.0/16", "guard deny rule 1: 169.254.0.0/16"},
		{&netfencev1.ExplainRequest{Destination: "198.51.100.7", Port: 80}, true, "allow", "pypi.org", "learned from pypi.org (1m0s left) by allow rule pypi.org"},
		{&netfencev1.ExplainRequest{Destination: "example.com"}, false, "", "", "the name is refused: dns mode allowlist, no rule matches example.com"},
	} {
		c.ask.Id = id
		got, err := e.client.Explain(t.Context(), c.ask)
		if err != nil || got.GetAllow() != c.allow || got.GetList() != c.list || got.GetRule() != c.rule || got.GetReason() != c.reason {
			t.Errorf("%v: got %v, %v", c.ask, got, err)
		}
	}

	// What is asked for by key, and what no policy decides.
	ask := &netfencev1.ExplainRequest{Key: "job-7", Destination: "10.1.2.3", Port: 443}
	blocked = "control plane lost: blocked"
	if got, err := e.client.Explain(t.Context(), ask); err != nil || got.GetAllow() || got.GetReason() != blocked {
		t.Errorf("lease: got %v, %v", got, err)
	}
	if _, _, err := e.store.Create(state.Attachment{ID: "id-1", Target: target.Target{Type: target.Cgroup, Name: "/cg/a", CgroupID: 1}, Pending: true}); err != nil {
		t.Fatal(err)
	}
	ask = &netfencev1.ExplainRequest{Id: "id-1", Destination: "10.1.2.3", Port: 443}
	if got, err := e.client.Explain(t.Context(), ask); err != nil || got.GetAllow() || !strings.HasPrefix(got.GetReason(), "pending") {
		t.Errorf("pending: got %v, %v", got, err)
	}
}

func TestExplainRefused(t *testing.T) {
	e := newEnv(t, state.Limits{})
	id := e.attach(t, "eth0", "")
	for _, c := range []struct {
		ask  *netfencev1.ExplainRequest
		code codes.Code
		text string
	}{
		{&netfencev1.ExplainRequest{Destination: "10.1.2.3"}, codes.InvalidArgument, "explain: name one attachment, by id or by key"},
		{&netfencev1.ExplainRequest{Id: "x", Destination: "10.1.2.3"}, codes.NotFound, "explain: attachment x: no such attachment (see `netfenced list`)"},
		{&netfencev1.ExplainRequest{Id: id}, codes.InvalidArgument, `explain: destination: "" is neither an address nor a name`},
		{&netfencev1.ExplainRequest{Id: id, Destination: "10.1.2.3:80"}, codes.InvalidArgument, `explain: destination "10.1.2.3:80" has a port (say it in port)`},
		{&netfencev1.ExplainRequest{Id: id, Destination: "10.1.2.3", Port: 65536}, codes.InvalidArgument, "explain: port 65536 is above 65535"},
		{&netfencev1.ExplainRequest{Id: id, Destination: "10.1.2.3", Port: 1, Protocol: 132}, codes.InvalidArgument, "explain: unknown protocol 132"},
	} {
		_, err := e.client.Explain(t.Context(), c.ask)
		if st := status.Convert(err); st.Code() != c.code || st.Message() != c.text {
			t.Errorf("%v: got %v", c.ask, err)
		}
	}
}
