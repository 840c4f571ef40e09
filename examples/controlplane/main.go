// SPDX-License-Identifier: Apache-2.0

// Controlplane is a whole control plane: an attachment may reach what the file of its tenant says, which is read again
// on SIGHUP. It prints what came of that.
package main

import (
	"context"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"google.golang.org/grpc"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/policy"
)

// decide reads the policy of the attachment's tenant: DIR/TENANT.yaml.
func decide(_ context.Context, a controlplane.Attachment) (*policy.Policy, error) {
	path := filepath.Join(os.Args[2], filepath.Base(a.Metadata["tenant"])+".yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err // it keeps what it has; a new one stays closed
	}
	file, err := policy.ParseFile(path, text)
	if err != nil {
		return nil, err
	}
	return file.Policy, nil
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: controlplane ADDRESS DIR")
	}
	plane, err := controlplane.New(controlplane.Options{Policy: decide})
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(controlplane.ServerOptions()...)
	plane.Register(server)
	go func() { log.Fatal(server.Serve(listener)) }()
	log.Printf("listening on %s", listener.Addr())

	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGHUP)
	for range changed {
		outcome, err := plane.Wait(context.Background(), plane.Refresh(controlplane.Selector{}))
		log.Printf("outcome: %+v, error: %v", outcome, err)
	}
}
