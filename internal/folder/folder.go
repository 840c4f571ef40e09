// SPDX-License-Identifier: Apache-2.0

// Package folder is the embedded control plane: it decides over the files of a policy folder. All else is package
// controlplane's, which speaks to the daemon as it does to those of a fleet.
//
// Source is its reading and deciding alone, for files that lie anywhere.
//
// A broken file keeps its last good state. One that is broken when the folder is opened has none, and
// what it would have decided is unknown: until it is mended or removed, no new attachment is given a
// policy (Ready), and existing ones keep what is in force, because a laxer file must not decide in its
// place. A file that is added broken later is as if it had not been added yet.
package folder

import (
	"context"
	"fmt"
	"math"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/netfence/netfence/controlplane"
)

// Folder is an open policy folder. Its methods may be called from any goroutine.
type Folder struct {
	*Source
	plane    *controlplane.ControlPlane
	listener *bufconn.Listener
}

// Open reads the folder of Options.Dir once, so that Ready and Errors answer from the start. A folder that is missing,
// unreadable or broken is no error of Open's.
func Open(opts Options) (*Folder, error) {
	f := &Folder{listener: bufconn.Listen(1 << 16)}
	opts.Changed = func([]Change) { f.plane.Refresh(controlplane.Selector{}) }
	var err error
	if f.Source, err = NewSource(opts); err != nil {
		return nil, err
	}
	f.plane, err = controlplane.New(controlplane.Options{
		Policy: f.Policy, OnRefused: f.refused, ServerID: "policy-folder", Attachments: math.MaxInt32, Log: f.log,
	})
	if err != nil {
		return nil, err
	}
	f.Load()
	return f, nil
}

// Run watches the folder and serves Dial until ctx is done. It returns nil then.
func (f *Folder) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() { f.Watch(ctx) })
	err := f.serve(ctx)
	cancel()
	watching.Wait()
	return err
}

// serve answers Dial until ctx is done.
func (f *Folder) serve(ctx context.Context) error {
	server := grpc.NewServer(append(controlplane.ServerOptions(), grpc.WaitForHandlers(true))...)
	f.plane.Register(server)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	err := server.Serve(f.listener)
	server.Stop()
	if ended := f.plane.Shutdown(context.WithoutCancel(ctx)); ended != nil { // its streams are gone
		return ended
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("policy folder %s: %w", f.opts.Dir, err)
	}
	return nil
}

// refused tells the operator which file the kernel or the daemon did not take. The daemon keeps it with the attachment;
// sending the same again would be refused again.
func (f *Folder) refused(a controlplane.Attachment, r controlplane.Refusal) {
	f.log.Error("policy refused; the attachment keeps what is in force", "attachment", a.ID,
		"policy", f.Decides(a.Metadata), "reason", r.String())
}

// Dial connects to the folder as a control plane. While Run does not run, the connection waits.
func (f *Folder) Dial(context.Context) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///policy-folder",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return f.listener.DialContext(ctx)
		}))
}
