// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
)

const (
	capable   = "2 processes of the cgroup have CAP_NET_ADMIN, CAP_NET_RAW or CAP_BPF: tunnels and packet sockets of theirs pass the filter by (drop these capabilities)"
	connected = "1 processes of the cgroup hold sockets that were opened before they joined it, and that pass the filter by (start them in the cgroup)"
	elsewhere = "3 processes of the cgroup are in another network namespace, where their names cannot be resolved: port 53 is denied to them (the daemon's log says why)"
	more      = "the cgroup has too many processes or sockets to look at each (attach before they start)"
)

func TestAttachWarns(t *testing.T) {
	for _, tt := range []struct {
		seen target.Occupants
		want []string
	}{
		{target.Occupants{}, nil},
		{target.Occupants{Capable: 2, Connected: 1, Elsewhere: 3, More: true}, []string{capable, connected, more, elsewhere}},
	} {
		e := newEnv(t, state.Limits{}, func(o *Options) { o.Look = func(string) target.Occupants { return tt.seen } })
		r, err := e.client.Attach(t.Context(), attachCgroup("/cg/a"))
		if err != nil || !slices.Equal(r.GetWarnings(), tt.want) {
			t.Errorf("%+v: %q, %v, want %q", tt.seen, r.GetWarnings(), err, tt.want)
		}
	}
}

func TestStrict(t *testing.T) {
	own, dryRun := attachCgroup("/cg/a"), attachCgroup("/cg/a")
	own.Policy = &netfencev1.BulkUpdate{Mode: netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST}
	dryRun.DryRun = true
	for _, tt := range []struct {
		name    string
		seen    target.Occupants
		request *netfencev1.AttachRequest
		refused string // empty: attached
	}{
		{"nobody there", target.Occupants{}, attachCgroup("/cg/a"), ""},
		{"capabilities", target.Occupants{Capable: 2}, attachCgroup("/cg/a"), capable},
		{"sockets", target.Occupants{Connected: 1}, attachCgroup("/cg/a"), connected},
		{"both, and more", target.Occupants{Capable: 2, Connected: 1, More: true}, attachCgroup("/cg/a"), capable + "; " + connected + "; " + more},
		{"a policy of its own", target.Occupants{Connected: 1}, own, connected},
		{"dry run", target.Occupants{Connected: 1}, dryRun, connected},
		{"DNS that is denied is no way out", target.Occupants{Elsewhere: 3}, attachCgroup("/cg/a"), ""},
		{"an interface", target.Occupants{Capable: 2}, attachInterface("eth0", ""), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t, state.Limits{}, func(o *Options) {
				o.Strict, o.Look = true, func(string) target.Occupants { return tt.seen }
			})
			_, err := e.client.Attach(t.Context(), tt.request)
			if tt.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantStatus(t, err, codes.FailedPrecondition, "attach cgroup /cg/a: not confined, and the configuration is strict: "+tt.refused)
			e.nothingLeft(t)
		})
	}
}

// TestStrictRetry: an attachment that is there already is not refused to who asks for it again.
func TestStrictRetry(t *testing.T) {
	var seen target.Occupants
	e := newEnv(t, state.Limits{}, func(o *Options) { o.Strict, o.Look = true, func(string) target.Occupants { return seen } })
	request := attachCgroup("/cg/a")
	request.Key = "job"
	if _, err := e.client.Attach(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	seen.Capable = 2
	r, err := e.client.Attach(t.Context(), request)
	if err != nil || r.GetCreated() || !slices.Equal(r.GetWarnings(), []string{capable}) {
		t.Errorf("%v, %v", r, err)
	}
}

func attachCgroup(path string) *netfencev1.AttachRequest {
	return &netfencev1.AttachRequest{Target: &netfencev1.AttachRequest_CgroupPath{CgroupPath: path}}
}
