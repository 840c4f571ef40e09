// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/config"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"netfenced": func() {
			os.Exit(Run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, Daemon{
				Version: "v1.2.3",
				Start: func(_ context.Context, c *config.Config, version string, logTo io.Writer) error {
					_, err := fmt.Fprintf(logTo, "start %s at %s, %s\n", version, c.Socket, c.ControlPlane.URL)
					return err
				},
				Clear: func(c *config.Config) error {
					if c.RunDir == "/locked" {
						return errors.New("lock /locked/lock: another netfenced holds it")
					}
					_, err := fmt.Printf("clear %s %s\n", c.BPFDir, c.RunDir)
					return err
				},
			}))
		},
	})
}

// TestScript runs the command line against a daemon that answers from the table below: it shows what is asked for and
// how answers are printed, not that a daemon gives them. That is for the daemon's own test and for test/e2e.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			socket := filepath.Join(env.WorkDir, "d.sock")
			listener, err := net.Listen("unix", socket)
			if err != nil {
				return err
			}
			server := grpc.NewServer()
			netfencev1.RegisterDaemonServiceServer(server, cannedDaemon{})
			done := make(chan error, 1)
			go func() { done <- server.Serve(listener) }()
			env.Defer(func() {
				server.Stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			env.Setenv("SOCK", socket)
			env.Setenv("NETFENCE_SOCKET", socket)
			return nil
		},
	})
}

type cannedDaemon struct {
	netfencev1.UnimplementedDaemonServiceServer
}

const firstID = "0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2"

var first = &netfencev1.AttachmentInfo{
	Id: firstID, Target: "veth0", Type: netfencev1.AttachmentType_ATTACHMENT_TYPE_TC,
	Direction: netfencev1.Direction_DIRECTION_INGRESS,
	Mode:      netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST, DnsMode: netfencev1.DnsMode_DNS_MODE_DISABLED,
	Metadata:       map[string]string{"tenant": "acme", "env": "prod"},
	PacketsAllowed: 12, PacketsBlocked: 3, Drops: map[string]uint64{"no-rule": 2, "deny-rule": 1},
	WouldDeny: map[string]uint64{"no-rule": 5}, DnsQueriesAllowed: 7, DnsQueriesWouldDeny: 6,
	AttachedAt: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)),
}

var second = &netfencev1.AttachmentInfo{
	Id: "0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f3", Target: "/sys/fs/cgroup/job-7",
	Type: netfencev1.AttachmentType_ATTACHMENT_TYPE_CGROUP,
	Mode: netfencev1.PolicyMode_POLICY_MODE_BLOCK_ALL, DnsMode: netfencev1.DnsMode_DNS_MODE_ALLOWLIST,
	AttachedAt: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 6, 7, time.UTC)),
}

func (cannedDaemon) Attach(_ context.Context, r *netfencev1.AttachRequest) (*netfencev1.AttachResponse, error) {
	if r.GetInterfaceName() == "tap9" {
		return nil, status.Error(codes.NotFound, "attach: interface tap9: no such interface")
	}
	if r.GetDryRun() {
		return &netfencev1.AttachResponse{Created: true}, nil
	}
	return &netfencev1.AttachResponse{Id: firstID, Created: r.GetKey() == "", Warnings: []string{"what was asked for: " + describe(r)}}, nil
}

func describe(r *netfencev1.AttachRequest) string {
	text := fmt.Sprint(r.GetPolicyName(), r.GetInterfaceName(), r.GetCgroupPath(), r.GetPid(), " ", r.GetDirection(), " ", r.GetNetns(), r.GetKey(), " ", r.GetMetadata())
	if p := r.GetPolicy(); p != nil {
		text += fmt.Sprint(" ", p.GetMode(), " ", len(p.GetAllowCidrs()), " addresses, ", len(p.GetDns().GetAllowDomains()), " names")
	}
	return text
}

func (cannedDaemon) Detach(_ context.Context, r *netfencev1.DetachRequest) (*emptypb.Empty, error) {
	if r.GetAll() || r.GetId() == firstID || r.GetMissingOk() {
		return &emptypb.Empty{}, nil
	}
	return nil, status.Error(codes.NotFound, "detach: attachment "+r.GetId()+r.GetKey()+": not found (see `netfenced list`)")
}

// List has pages of one.
func (cannedDaemon) List(_ context.Context, r *netfencev1.ListRequest) (*netfencev1.ListResponse, error) {
	if r.GetPageToken() == "" {
		return &netfencev1.ListResponse{Attachments: []*netfencev1.AttachmentInfo{first}, NextPageToken: "2", TotalCount: 2}, nil
	}
	return &netfencev1.ListResponse{Attachments: []*netfencev1.AttachmentInfo{second}, TotalCount: 2}, nil
}

func (cannedDaemon) GetStatus(context.Context, *emptypb.Empty) (*netfencev1.DaemonStatus, error) {
	return &netfencev1.DaemonStatus{
		Version: "v1.2.3", DaemonId: "node-1", Hostname: "host",
		ControlPlaneState: netfencev1.ConnectionState_CONNECTION_STATE_CONNECTED, ControlPlaneAddress: "dir:///etc/netfence/policies",
		AttachmentCount: 2, Problems: []string{"policy agents.yaml: line 3: mode is missing"},
		Counters: &netfencev1.Counters{
			PacketsAllowed: 120, PacketsBlocked: 30, Drops: map[string]uint64{"no-rule": 20, "deny-rule": 10},
			WouldDeny: map[string]uint64{"no-rule": 50}, DnsQueriesAllowed: 70, DnsQueriesBlocked: 8, DnsQueriesWouldDeny: 60,
		},
	}, nil
}

func (cannedDaemon) Explain(_ context.Context, r *netfencev1.ExplainRequest) (*netfencev1.ExplainResponse, error) {
	asked := fmt.Sprint(r.GetDestination(), " ", r.GetPort(), " ", r.GetProtocol())
	switch {
	case r.GetId() != firstID && r.GetKey() != "job-7":
		return nil, status.Error(codes.NotFound, "explain: attachment "+r.GetId()+": no such attachment")
	case r.GetPort() == 443:
		return &netfencev1.ExplainResponse{Allow: true, List: "allow", Rule: "10.0.0.0/8", Reason: "allow rule 1: 10.0.0.0/8; asked: " + asked}, nil
	}
	return &netfencev1.ExplainResponse{Reason: "mode allowlist, no rule matches; asked: " + asked}, nil
}

func (cannedDaemon) SetMetadata(_ context.Context, r *netfencev1.SetMetadataRequest) (*netfencev1.SetMetadataResponse, error) {
	if len(r.GetMetadata()) == 0 && r.GetKey() == "job-7" {
		return &netfencev1.SetMetadataResponse{}, nil
	}
	return nil, status.Error(codes.NotFound, fmt.Sprintf("set metadata: attachment %s: no such attachment, for %v", r.GetId(), r.GetMetadata()))
}

// Watch ends, as a daemon does that stops.
func (cannedDaemon) Watch(r *netfencev1.WatchRequest, stream grpc.ServerStreamingServer[netfencev1.EventBatch]) error {
	for _, id := range r.GetIds() {
		if id != firstID {
			return status.Error(codes.NotFound, "watch: attachment "+id+": not found")
		}
	}
	at := func(second int) *netfencev1.Event {
		return &netfencev1.Event{Id: firstID, Time: timestamppb.New(time.Date(2026, 1, 2, 3, 4, second, 6e6, time.UTC))}
	}
	tcp, icmp, frame, asked, refused, incident, unknown := at(1), at(2), at(3), at(4), at(5), at(6), at(7)
	passed, answered := at(8), at(9)
	passed.Event = &netfencev1.Event_DeniedFlow{DeniedFlow: &netfencev1.DeniedFlow{
		Address: "198.51.100.7", Port: 80, IpProtocol: 6, Reason: "no-rule", Audit: true,
	}}
	answered.Event = &netfencev1.Event_DnsDecision{DnsDecision: &netfencev1.DnsDecision{
		Domain: "example.net", QueryType: "A", Reason: "no rule allows example.net", Audit: true,
	}}
	tcp.Event = &netfencev1.Event_DeniedFlow{DeniedFlow: &netfencev1.DeniedFlow{
		Address: "2001:db8::1", Port: 443, IpProtocol: 6, Reason: "no-rule", Names: []string{"a.example", "b.example"},
	}}
	icmp.Event = &netfencev1.Event_DeniedFlow{DeniedFlow: &netfencev1.DeniedFlow{
		Address: "192.0.2.1", IpProtocol: 1, Reason: "deny-rule", SourceAddress: "10.0.0.2", Length: 84, Rule: "deny 192.0.2.0/24",
	}}
	frame.Event = &netfencev1.Event_DeniedFlow{DeniedFlow: &netfencev1.DeniedFlow{Reason: "not-ip", Length: 64}}
	asked.Event = &netfencev1.Event_DnsDecision{DnsDecision: &netfencev1.DnsDecision{
		Domain: "example.com", QueryType: "A", Allowed: true, Reason: "allow example.com", Learned: []string{"192.0.2.1", "192.0.2.2"},
	}}
	refused.Event = &netfencev1.Event_DnsDecision{DnsDecision: &netfencev1.DnsDecision{Domain: "evil\x1b[2J\x1b[2J<&>", QueryType: "AAAA"}}
	incident.Event = &netfencev1.Event_Incident{Incident: &netfencev1.Incident{Kind: "names_limit", Message: "no room for another name"}}
	for _, batch := range []*netfencev1.EventBatch{
		{DaemonId: "node-1", InstanceId: "run-1", Number: 1},
		{Number: 2, Events: []*netfencev1.Event{tcp, icmp}, Lost: 7},
		{Number: 3, Events: []*netfencev1.Event{frame, asked, refused, incident, unknown, passed, answered}},
	} {
		if err := stream.Send(batch); err != nil {
			return err
		}
	}
	return status.Error(codes.Unavailable, "the daemon is stopping")
}

func (cannedDaemon) Get(_ context.Context, r *netfencev1.GetRequest) (*netfencev1.GetResponse, error) {
	if r.GetId() == second.GetId() {
		return named, nil
	}
	if r.GetId() != firstID && r.GetKey() != "job-7" {
		return nil, status.Error(codes.NotFound, "get: attachment "+r.GetId()+": not found")
	}
	return &netfencev1.GetResponse{
		Attachment: first,
		Policy: &netfencev1.BulkUpdate{
			Mode: netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST,
			AllowCidrs: []*netfencev1.CIDREntry{
				{Cidr: "10.0.0.0/16"},
				{
					Cidr: "192.0.2.10", Ttl: durationpb.New(10 * time.Minute),
					Ports: []*netfencev1.PortRange{{First: 5432, Last: 5432, Protocol: netfencev1.Protocol_PROTOCOL_TCP}},
				},
			},
			DenyCidrs: []*netfencev1.CIDREntry{{Cidr: "10.0.9.0/24"}},
		},
		Applied: &netfencev1.Applied{Revision: "r7"},
		Drops:   map[string]uint64{"no-rule": 2, "deny-rule": 1},
		Guard: &netfencev1.Guard{
			AllowCidrs: []*netfencev1.CIDREntry{{Cidr: "10.0.0.53/32", Ports: []*netfencev1.PortRange{{First: 53}}}},
			DenyCidrs:  []*netfencev1.CIDREntry{{Cidr: "169.254.0.0/16"}},
		},
		FlowsUnnoted: 3,
		LastError:    "allow rule 1: prefix is missing",
		Key:          "job-7",
	}, nil
}

// named has what DNS adds.
var named = &netfencev1.GetResponse{
	Attachment: &netfencev1.AttachmentInfo{
		Id: second.Id, Target: second.Target, Type: second.Type, AttachedAt: second.AttachedAt,
		Mode: netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST, DnsMode: netfencev1.DnsMode_DNS_MODE_ALLOWLIST,
		DnsAddress: "127.128.0.7:1053", DnsQueriesAllowed: 4, DnsQueriesBlocked: 1,
	},
	Policy: &netfencev1.BulkUpdate{
		Mode:       netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST,
		RepliesUdp: []*netfencev1.PortRange{{First: 5060, Last: 5061, Protocol: netfencev1.Protocol_PROTOCOL_UDP}},
		Source:     []string{"10.0.0.7", "02:00:00:00:00:01"},
		Dns: &netfencev1.DnsConfig{
			Mode: netfencev1.DnsMode_DNS_MODE_ALLOWLIST,
			AllowDomains: []*netfencev1.DomainEntry{
				{Domain: "*.pypi.org", Ports: []*netfencev1.PortRange{{First: 443}}},
				{Domain: "db.corp", Private: true, IncludeSubdomains: true},
			},
			DenyDomains:     []*netfencev1.DomainEntry{{Domain: "evil.pypi.org"}},
			UpstreamServers: []string{"192.0.2.53"},
			Forward:         []*netfencev1.ZoneForward{{Zone: "corp", To: []string{"10.0.0.53", "10.0.1.53:5353"}}},
			RefuseWith:      netfencev1.RefuseCode_REFUSE_CODE_REFUSED,
		},
	},
	OwnPolicy: true,
	Learned: []*netfencev1.LearnedAddress{
		{
			Address: "151.101.0.223", Names: []string{"files.pypi.org", "www.pypi.org"},
			Ports: []*netfencev1.PortRange{{First: 443}}, Remaining: durationpb.New(90500 * time.Millisecond),
		},
		{Address: "10.1.2.3", Names: []string{"db.corp"}, Remaining: durationpb.New(time.Minute)},
	},
}
