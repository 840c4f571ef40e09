// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is the other end of a stream. What the real one does with commands is controlclient's to test.
type daemon struct {
	grpc.BidiStreamingClient[netfencev1.DaemonEvent, netfencev1.ControlCommand]
	t *testing.T
}

// connect opens a stream to the folder, which run serves until the test ends.
func connect(t *testing.T, f *Folder, run func(context.Context) error, attachments ...*netfencev1.Attachment) *daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	conn, err := f.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	stream, err := netfencev1.NewControlPlaneClient(conn).Connect(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{stream, t}
	d.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Sync{Sync: &netfencev1.SyncRequest{
		DaemonId: "d", Hello: &netfencev1.Hello{}, Attachments: attachments,
	}}})
	if ack := d.recv().GetSyncAck(); ack.GetWelcome() == nil || !slices.Contains(ack.GetWelcome().GetFeatures(), "ports") {
		t.Fatalf("want SyncAck with Welcome first, got %v", ack)
	}
	return d
}

func (d *daemon) send(event *netfencev1.DaemonEvent) {
	d.t.Helper()
	if err := d.Send(event); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) recv() *netfencev1.ControlCommand {
	d.t.Helper()
	cmd, err := d.Recv()
	if err != nil {
		d.t.Fatal(err)
	}
	return cmd
}

func (d *daemon) subscribe(id string, metadata map[string]string) {
	d.t.Helper()
	d.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Subscribed{Subscribed: &netfencev1.Subscribed{Id: id, Metadata: metadata}}})
}

// want wants a numbered command for id that makes the given file's policy, or "default_policy".
func (d *daemon) want(f *Folder, id string, ack bool, source string) {
	d.t.Helper()
	cmd := d.recv()
	for cmd.GetId() == fence && id != fence {
		cmd = d.recv() // of a wantNothing whose Unsubscribed was on its way
	}
	if cmd.GetId() != id || (cmd.GetSubscribedAck() != nil) != ack || (cmd.GetBulkUpdate() != nil) == ack || cmd.GetNumber() == 0 {
		d.t.Fatalf("got %v, want a numbered command for %s (acknowledgement: %v)", cmd, id, ack)
	}
	if want := f.revisionOf(source); cmd.GetRevision() != want {
		d.t.Errorf("%s: got revision %s, want %s's %s", id, cmd.GetRevision(), source, want)
	}
}

const fence = "zzz"

// wantNothing sends for a new attachment that sorts last: anything that is due comes before its answer.
func (d *daemon) wantNothing(f *Folder) {
	d.t.Helper()
	d.subscribe(fence, nil)
	cmd := d.recv()
	if cmd.GetId() != fence {
		d.t.Fatalf("unexpected %v", cmd)
	}
	d.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Unsubscribed{Unsubscribed: &netfencev1.Unsubscribed{Id: fence}}})
}

func (f *Folder) revisionOf(source string) string {
	for _, g := range f.current().deciding {
		if g.file.Name == source {
			return g.decision.revision
		}
	}
	return f.fallback.revision
}

func applied(revision string) *netfencev1.Applied { return &netfencev1.Applied{Revision: revision} }

func TestResyncSendsWhatDiffers(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": strict, "b.yaml": lax}.write(t, dir)
	f := open(t, dir)
	d := connect(t, f, f.serve,
		&netfencev1.Attachment{Id: "1", Metadata: acme, Applied: applied(f.revisionOf("a.yaml"))},
		&netfencev1.Attachment{Id: "2", Metadata: acme, Applied: applied(f.revisionOf("b.yaml"))},
		&netfencev1.Attachment{Id: "3", Metadata: acme, Applied: applied("")},
		&netfencev1.Attachment{Id: "4", Applied: applied(f.revisionOf("b.yaml"))},
	)
	d.want(f, "2", false, "a.yaml")
	d.want(f, "3", false, "a.yaml")
	d.wantNothing(f)

	// One that did not fit into the SyncRequest.
	d.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Subscribed{Subscribed: &netfencev1.Subscribed{
		Id: "5", Metadata: acme, Applied: applied(f.revisionOf("b.yaml")),
	}}})
	d.want(f, "5", false, "a.yaml")
}

func TestChangeReachesOnlyWhatItChanges(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": strict}.write(t, dir)
	f := open(t, dir)
	d := connect(t, f, f.serve)
	d.subscribe("1", acme)
	d.want(f, "1", true, "a.yaml")
	d.subscribe("2", nil)
	d.want(f, "2", true, "default_policy")
	d.subscribe("3", acme)
	d.want(f, "3", true, "a.yaml")

	files{"a.yaml": strict2}.write(t, dir)
	f.load()
	d.want(f, "1", false, "a.yaml")
	d.want(f, "3", false, "a.yaml")
	d.wantNothing(f)

	d.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Unsubscribed{Unsubscribed: &netfencev1.Unsubscribed{Id: "1"}}})
	d.wantNothing(f) // the stream is in order: it was heard
	files{"a.yaml": "", "b.yaml": lax}.write(t, dir)
	f.load()
	d.want(f, "2", false, "b.yaml")
	d.want(f, "3", false, "b.yaml")

	files{"b.yaml": broken}.write(t, dir)
	f.load()
	d.subscribe("4", nil)
	d.want(f, "4", true, "b.yaml") // its last good state
}

// TestBrokenFromTheStart: b.yaml must not decide for what a.yaml may have decided.
func TestBrokenFromTheStart(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": broken, "b.yaml": lax}.write(t, dir)
	f := open(t, dir)
	byB := f.revisionOf("b.yaml")
	d := connect(t, f, f.serve,
		&netfencev1.Attachment{Id: "1", Metadata: acme, Applied: applied("sha256:of-a-before")},
		&netfencev1.Attachment{Id: "2", Applied: applied(byB)},
	)
	d.subscribe("3", nil)

	// What b.yaml decided already follows it; nothing else is sent.
	files{"b.yaml": "mode: denylist\ndeny: [192.0.2.0/24]\n"}.write(t, dir)
	f.load()
	d.want(f, "2", false, "b.yaml")

	files{"a.yaml": strict}.write(t, dir)
	f.load()
	d.want(f, "1", false, "a.yaml")
	d.want(f, "3", true, "b.yaml")
	d.wantNothing(f)
}

func TestFirstEventMustBeSyncRequest(t *testing.T) {
	f := open(t, t.TempDir())
	d := connect(t, f, f.serve)
	conn, err := f.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := netfencev1.NewControlPlaneClient(conn).Connect(d.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&netfencev1.DaemonEvent{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("got %v", err)
	}
}

// TestRefusedIsNotRepeated: the daemon would refuse the same again. A changed file is sent.
func TestRefusedIsNotRepeated(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": strict}.write(t, dir)
	f := open(t, dir)
	d := connect(t, f, f.serve, &netfencev1.Attachment{Id: "1", Metadata: acme, Applied: applied("")})
	d.want(f, "1", false, "a.yaml")
	d.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Result{Result: &netfencev1.CommandResult{
		Number: 1, Id: "1", Code: netfencev1.CommandCode_COMMAND_CODE_REFUSED,
		Violations: []*netfencev1.Violation{{Field: "bulk_update", Expected: "room in the kernel's map"}},
	}}})
	d.wantNothing(f)
	files{"a.yaml": strict2}.write(t, dir)
	f.load()
	d.want(f, "1", false, "a.yaml")
}

// TestWatch goes from the file system to the stream, through inotify. What is in between two states, such
// as a folder that is away for a moment, may be seen or not.
func TestWatch(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "policies")
	f := open(t, dir)
	d := connect(t, f, f.Run, &netfencev1.Attachment{Id: "1", Metadata: acme, Applied: applied(f.fallback.revision)})
	changes := []struct {
		name string
		want string // the policy that decides then; empty: the default
		make func() error
	}{
		{"folder made, with a file", strict, func() error {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(strict), 0o600)
		}},
		{"written in place", strict2, func() error { return os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(strict2), 0o600) }},
		{"renamed into place", lax, func() error {
			temp := filepath.Join(dir, ".a.yaml.tmp")
			if err := os.WriteFile(temp, []byte(lax), 0o600); err != nil {
				return err
			}
			return os.Rename(temp, filepath.Join(dir, "a.yaml"))
		}},
		{"folder replaced", strict, func() error {
			next := filepath.Join(root, "next")
			if err := os.Mkdir(next, 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(next, "a.yaml"), []byte(strict), 0o600); err != nil {
				return err
			}
			if err := os.Rename(dir, dir+".old"); err != nil {
				return err
			}
			return os.Rename(next, dir)
		}},
		{"written in the new folder", strict2, func() error { return os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(strict2), 0o600) }},
		{"folder removed", "", func() error { return os.RemoveAll(dir) }},
	}
	for _, change := range changes {
		if err := change.make(); err != nil {
			t.Fatal(err)
		}
		for d.recv().GetRevision() != revision(t, f, change.want) {
		}
		t.Log(change.name)
	}
}

// revision that a policy file with this text has.
func revision(t *testing.T, f *Folder, text string) string {
	t.Helper()
	if text == "" {
		return f.fallback.revision
	}
	file, err := policy.ParseFile("a.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	decided, err := newDecision("a.yaml", file.Policy, &f.opts)
	if err != nil {
		t.Fatal(err)
	}
	return decided.revision
}
