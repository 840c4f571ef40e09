// SPDX-License-Identifier: Apache-2.0

// Protocol is a control plane on nothing but the generated messages, for who cannot use package controlplane: every
// attachment of every daemon may reach 10.0.0.0/16 and TCP port 443 of 192.0.2.10.
package main

import (
	"log"
	"net"
	"os"

	"google.golang.org/grpc"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

type server struct {
	netfencev1.UnimplementedControlPlaneServer
}

func (server) Connect(stream netfencev1.ControlPlane_ConnectServer) error {
	for {
		event, err := stream.Recv()
		if err != nil {
			return err // the daemon keeps the last policy and comes back
		}
		switch e := event.GetEvent().(type) {
		case *netfencev1.DaemonEvent_Sync: // a daemon, with what it has from before
			log.Printf("daemon %s has %d attachments", e.Sync.GetDaemonId(), len(e.Sync.GetAttachments()))
			err = stream.Send(&netfencev1.ControlCommand{Command: &netfencev1.ControlCommand_SyncAck{
				SyncAck: &netfencev1.SyncAck{Welcome: &netfencev1.Welcome{Features: []string{"ports"}}},
			}})
		case *netfencev1.DaemonEvent_Subscribed: // a new attachment, closed until we answer
			log.Printf("attachment %s of %s", e.Subscribed.GetId(), e.Subscribed.GetTarget())
			err = stream.Send(&netfencev1.ControlCommand{Id: e.Subscribed.GetId(),
				Command: &netfencev1.ControlCommand_SubscribedAck{SubscribedAck: policy()}})
		case *netfencev1.DaemonEvent_Unsubscribed:
			log.Printf("attachment %s is gone: %s", e.Unsubscribed.GetId(), e.Unsubscribed.GetReason())
		}
		if err != nil {
			return err
		}
	}
}

func policy() *netfencev1.SubscribedAck {
	return &netfencev1.SubscribedAck{
		Mode: netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST,
		AllowCidrs: []*netfencev1.CIDREntry{
			{Cidr: "10.0.0.0/16"},
			{Cidr: "192.0.2.10/32", Ports: []*netfencev1.PortRange{{First: 443, Last: 443, Protocol: netfencev1.Protocol_PROTOCOL_TCP}}},
		},
	}
}

func main() {
	address := "127.0.0.1:9000"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	netfencev1.RegisterControlPlaneServer(s, server{})
	log.Printf("listening on %s", listener.Addr())
	log.Fatal(s.Serve(listener))
}
