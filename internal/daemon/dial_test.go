// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/testenv"
)

// blocker is a control plane that lets nothing pass.
type blocker struct {
	netfencev1.UnimplementedControlPlaneServer
}

func (blocker) Connect(stream grpc.BidiStreamingServer[netfencev1.DaemonEvent, netfencev1.ControlCommand]) error {
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		command := &netfencev1.ControlCommand{}
		switch {
		case event.GetSync() != nil:
			command.Command = &netfencev1.ControlCommand_SyncAck{SyncAck: &netfencev1.SyncAck{}}
		case event.GetSubscribed() != nil:
			command.Id = event.GetSubscribed().GetId()
			command.Command = &netfencev1.ControlCommand_SubscribedAck{
				SubscribedAck: &netfencev1.SubscribedAck{Mode: netfencev1.PolicyMode_POLICY_MODE_BLOCK_ALL},
			}
		default:
			continue
		}
		if err := stream.Send(command); err != nil {
			return err
		}
	}
}

// The way to the control plane leads through a device that is filtered with direction egress and blocks all. The daemon
// gets through, on a connection of before and on a new one; others do not.
func TestControlPlaneBehindEgressFilter(t *testing.T) {
	i := newInstance(t)
	ns, far := testenv.Self(t), testenv.NewNS(t)
	testenv.Veth(t,
		testenv.End{NS: ns, Name: "out0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/30")}},
		testenv.End{NS: far, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/30")}},
	)
	server := grpc.NewServer()
	netfencev1.RegisterControlPlaneServer(server, blocker{})
	listener := far.Listen(t, "tcp", "192.0.2.2:9000")
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})

	i.config.ControlPlane.URL = config.Endpoint{Addresses: []string{"192.0.2.2:9000"}}
	i.config.ControlPlane.Insecure = true
	i.start(t)
	connected := func() bool {
		st, err := i.client.GetStatus(t.Context(), &emptypb.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		return st.GetControlPlaneState() == netfencev1.ConnectionState_CONNECTION_STATE_CONNECTED
	}
	testenv.Eventually(t, "connected", connected)
	r, err := i.client.Attach(t.Context(), &netfencev1.AttachRequest{
		Target:    &netfencev1.AttachRequest_InterfaceName{InterfaceName: "out0"},
		Direction: netfencev1.Direction_DIRECTION_EGRESS,
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, i.log)
	}
	blocked := func() uint64 {
		got, err := i.client.Get(t.Context(), &netfencev1.GetRequest{Id: r.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetAttachment().GetPacketsBlocked()
	}

	i.stop()
	i.start(t)
	testenv.Eventually(t, "connected again", connected)
	before := blocked() // the kernel's own, such as the last ACK of a connection whose socket is gone
	outcome, err := testenv.Send(testenv.Probe{Kind: testenv.TCP, To: netip.MustParseAddrPort("192.0.2.2:9000")})
	if err != nil || outcome.Answered {
		t.Errorf("somebody else: %v, %v", outcome, err)
	}
	if blocked() == before {
		t.Error("somebody else's packets did not meet the filter")
	}
}
