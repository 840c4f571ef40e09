// SPDX-License-Identifier: Apache-2.0

// Package folder is the embedded control plane: it decides over the files of a policy folder. All else is package
// controlplane's, which speaks to the daemon as it does to those of a fleet.
//
// A broken file keeps its last good state. One that is broken when the folder is opened has none, and
// what it would have decided is unknown: until it is mended or removed, no new attachment is given a
// policy (Ready), and existing ones keep what is in force, because a laxer file must not decide in its
// place. A file that is added broken later is as if it had not been added yet.
package folder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/policy"
)

// Options of a Folder. Dir is required.
type Options struct {
	Dir     string
	Default *policy.Policy // for an attachment that no file matches; nil: block-all
	// What the daemon takes: a file that goes beyond is broken. Zero: no limit of bytes, policy's of rules.
	MaxCommandBytes int
	Limits          policy.Limits
	Guard           *policy.Guard
	Log             *slog.Logger // nil: slog.Default
}

// Folder is an open policy folder. Its methods may be called from any goroutine.
type Folder struct {
	opts     Options
	log      *slog.Logger
	fallback decision // the default policy
	plane    *controlplane.ControlPlane
	listener *bufconn.Listener

	mu       sync.Mutex
	snapshot *snapshot // replaced, never edited
}

// Open reads the folder once, so that Ready and Errors answer from the start. A folder that is missing,
// unreadable or broken is no error of Open's.
func Open(opts Options) (*Folder, error) {
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("policy folder %s: %w", opts.Dir, err)
	}
	opts.Dir = dir
	if opts.Default == nil {
		opts.Default = policy.BlockAll()
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	f := &Folder{
		opts:     opts,
		log:      opts.Log.With("folder", dir),
		listener: bufconn.Listen(1 << 16),
		snapshot: &snapshot{unread: true},
	}
	if f.fallback, err = newDecision("default_policy", opts.Default, &opts); err != nil {
		return nil, fmt.Errorf("default_policy: %w", err)
	}
	f.plane, err = controlplane.New(controlplane.Options{
		Policy: f.policy, OnRefused: f.refused, ServerID: "policy-folder", Attachments: math.MaxInt32, Log: f.log,
	})
	if err != nil {
		return nil, err
	}
	f.load()
	return f, nil
}

// Run watches the folder and serves Dial until ctx is done. It returns nil then.
func (f *Folder) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() { f.watch(ctx) })
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

// policy decides for an attachment. What is in force of one that was not decided here, or not yet, may be the decision of
// a file that is broken since: then it is left alone, as is one that has no policy at all.
func (f *Folder) policy(_ context.Context, a controlplane.Attachment) (*policy.Policy, error) {
	s := f.current()
	decided := f.decide(s, a.Metadata)
	if len(s.blocked) > 0 && !a.Decided && (a.Pending || a.Revision != decided.revision) {
		return nil, nil
	}
	return decided.policy, nil
}

// refused tells the operator which file the kernel or the daemon did not take. The daemon keeps it with the attachment;
// sending the same again would be refused again.
func (f *Folder) refused(a controlplane.Attachment, r controlplane.Refusal) {
	f.log.Error("policy refused; the attachment keeps what is in force", "attachment", a.ID,
		"policy", f.decide(f.current(), a.Metadata).source, "reason", r.String())
}

// Dial connects to the folder as a control plane. While Run does not run, the connection waits.
func (f *Folder) Dial(context.Context) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///policy-folder",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return f.listener.DialContext(ctx)
		}))
}

// Ready tells why no new attachment can be given a policy: the files that are broken since the folder
// was opened. The local API asks it, through controlclient.Options.Ready, before an attach waits.
func (f *Folder) Ready() error { return errors.Join(f.current().blocked...) }

// Errors are what is wrong with the folder now, each with its file's name.
func (f *Folder) Errors() []error { return f.current().errs }

func (f *Folder) current() *snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshot
}

// decide gives the policy for an attachment with this metadata.
func (f *Folder) decide(s *snapshot, metadata map[string]string) decision {
	if g := s.decide(metadata); g != nil {
		return g.decision
	}
	return f.fallback
}

// load reads the folder and tells what became right or wrong since the last time.
func (f *Folder) load() {
	old := f.current()
	next := read(&f.opts, old)
	if next == old {
		return
	}
	f.mu.Lock()
	f.snapshot = next
	f.mu.Unlock()
	f.plane.Refresh(controlplane.Selector{})

	for _, err := range next.errs {
		switch {
		case slices.ContainsFunc(old.errs, func(known error) bool { return known.Error() == err.Error() }):
		case slices.Contains(next.blocked, err):
			f.log.Error("policy broken from the start; new attachments are refused until it is mended or removed", "err", err)
		default:
			f.log.Error("policy broken; its last good state, if it had one, is kept", "err", err)
		}
	}
	for _, g := range next.deciding {
		if !slices.Contains(old.deciding, g) {
			for _, warning := range g.file.Warnings {
				f.log.Warn("policy", "file", g.file.Name, "warning", warning)
			}
		}
	}
	if next.missing && !old.missing {
		f.log.Warn("policy folder does not exist; it counts as empty")
	}
	if len(next.errs) == 0 && len(old.errs) > 0 {
		f.log.Info("policy folder is in order again", "files", len(next.deciding))
	}
}

// watch reads the folder whenever it may have changed.
func (f *Folder) watch(ctx context.Context) {
	hints := make(chan struct{}, 1)
	load := f.load
	notifier, err := newNotifier(f.opts.Dir)
	if err != nil {
		// inotify instances are a limit of the machine (fs.inotify.max_user_instances).
		f.log.Warn("policy folder is not watched, only read periodically", "every", rescan, "err", err)
	} else {
		load = func() {
			if err := notifier.arm(); err != nil {
				f.log.Warn("policy folder is not watched, only read periodically", "every", rescan, "err", err)
			}
			f.load()
		}
		var running sync.WaitGroup
		defer running.Wait()
		running.Go(func() { notifier.run(ctx, hints, func(err error) { f.log.Warn("policy folder watch", "err", err) }) })
		defer func() {
			if err := notifier.close(); err != nil {
				f.log.Warn("policy folder watch", "err", err)
			}
		}()
	}
	load()
	reload(ctx, hints, load)
}
