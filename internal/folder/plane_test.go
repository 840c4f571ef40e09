// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs the folder until the test ends, and connects a daemon to it. What the real one does with commands is
// controlclient's to test, what is sent at all controlplane's.
func start(t *testing.T, f *Folder, run func(context.Context) error, d *controlplanetest.Daemon) *controlplanetest.Daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	conn, err := f.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d == nil {
		d = controlplanetest.New(conn, controlplanetest.Config{ID: "d"})
	}
	if err := d.Move(conn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Disconnect()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return d
}

// settled waits until the daemon has what the folder decides, or the folder does not decide.
func (f *Folder) settled(t *testing.T) controlplane.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), controlplanetest.Patience)
	defer cancel()
	outcome, err := f.plane.Wait(ctx, f.plane.Refresh(controlplane.Selector{}))
	if err != nil {
		t.Fatal(err)
	}
	return outcome
}

// allows wants the policy in force to allow the address; empty: to be the default, block-all.
func allows(t *testing.T, d *controlplanetest.Daemon, id, address string) {
	t.Helper()
	p := d.Policy(id)
	switch {
	case p == nil:
		t.Errorf("%s: gone", id)
	case address == "":
		if p.Mode != policy.ModeBlockAll {
			t.Errorf("%s: got %+v, want the default", id, p)
		}
	case len(p.Allow) != 1 || p.Allow[0].Prefix.Addr().String() != address:
		t.Errorf("%s: got %+v, want %s", id, p, address)
	}
}

func TestChangeReachesOnlyWhatItChanges(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": strict}.write(t, dir)
	f := open(t, dir)
	d := start(t, f, f.serve, nil)
	first, second := d.Attach(t, "/1", acme), d.Attach(t, "/2", nil)
	allows(t, d, first, "192.0.2.1")
	allows(t, d, second, "")
	before := d.Commands()["bulk_update"]

	files{"a.yaml": strict2}.write(t, dir)
	f.Load()
	f.settled(t)
	allows(t, d, first, "192.0.2.2")
	allows(t, d, second, "")
	if n := d.Commands()["bulk_update"] - before; n != 1 {
		t.Errorf("%d updates, want one", n)
	}
	files{"a.yaml": "", "b.yaml": lax}.write(t, dir)
	f.Load()
	f.settled(t)
	for _, id := range []string{first, second} {
		if got := d.Policy(id); got.Mode != policy.ModeDisabled {
			t.Errorf("%s: got %+v", id, got)
		}
	}
	files{"b.yaml": broken}.write(t, dir)
	f.Load()
	if got := d.Policy(d.Attach(t, "/4", nil)); got.Mode != policy.ModeDisabled {
		t.Errorf("got %+v, want the last good state", got)
	}
}

// TestBrokenFromTheStart: b.yaml must not decide for what a.yaml may have decided.
func TestBrokenFromTheStart(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": strict, "b.yaml": lax}.write(t, dir)
	before := open(t, dir)
	var byA, byB string
	var d *controlplanetest.Daemon
	t.Run("a daemon of before", func(t *testing.T) {
		d = start(t, before, before.serve, nil)
		byA, byB = d.Attach(t, "/1", acme), d.Attach(t, "/2", nil)
		before.settled(t)
	})
	allows(t, d, byA, "192.0.2.1")

	files{"a.yaml": broken}.write(t, dir)
	f := open(t, dir)
	if err := f.Ready(); err == nil || !strings.Contains(err.Error(), "a.yaml") {
		t.Errorf("ready: %v", err)
	}
	start(t, f, f.serve, d)
	waits := d.Subscribe("/3", nil)
	f.settled(t)
	allows(t, d, byA, "192.0.2.1")

	// What b.yaml decided already follows it; nothing else is touched.
	files{"b.yaml": "mode: allowlist\nallow: [192.0.2.9]\n"}.write(t, dir)
	f.Load()
	if outcome := f.settled(t); outcome.Applied != 1 || outcome.Undecided < 1 {
		t.Errorf("outcome %+v", outcome)
	}
	allows(t, d, byA, "192.0.2.1")
	allows(t, d, byB, "192.0.2.9")
	allows(t, d, waits, "")

	files{"a.yaml": strict2}.write(t, dir)
	f.Load()
	d.WaitPolicy(t, waits, func(p *policy.Policy) bool { return p.Mode == policy.ModeAllowlist })
	f.settled(t)
	allows(t, d, byA, "192.0.2.2")
	allows(t, d, waits, "192.0.2.9")
}

// TestRefusedIsNotRepeated: the daemon would refuse the same again. A changed file is sent.
func TestRefusedIsNotRepeated(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": strict}.write(t, dir)
	f := open(t, dir)
	d := start(t, f, f.serve, nil)
	id := d.Attach(t, "/1", acme)
	d.Refuse(func(string, *policy.Policy) error { return errors.New("no room in the kernel's map") })
	files{"a.yaml": strict2}.write(t, dir)
	f.Load()
	f.settled(t)
	f.settled(t)
	if n := d.Commands()["bulk_update"]; n != 1 {
		t.Errorf("sent %d times", n)
	}
	d.Refuse(nil)
	files{"a.yaml": strings.ReplaceAll(strict, "192.0.2.1", "192.0.2.3")}.write(t, dir)
	f.Load()
	f.settled(t)
	allows(t, d, id, "192.0.2.3")
}

// TestWatch goes from the file system to the daemon, through inotify. What is in between two states, such
// as a folder that is away for a moment, may be seen or not.
func TestWatch(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "policies")
	f := open(t, dir)
	d := start(t, f, f.Run, nil)
	id := d.Attach(t, "/1", acme)
	changes := []struct {
		name string
		want string // address that is allowed then; empty: the default decides, "*": everything passes
		make func() error
	}{
		{"folder made, with a file", "192.0.2.1", func() error {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(strict), 0o600)
		}},
		{"written in place", "192.0.2.2", func() error { return os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(strict2), 0o600) }},
		{"renamed into place", "*", func() error {
			temp := filepath.Join(dir, ".a.yaml.tmp")
			if err := os.WriteFile(temp, []byte(lax), 0o600); err != nil {
				return err
			}
			return os.Rename(temp, filepath.Join(dir, "a.yaml"))
		}},
		{"folder replaced", "192.0.2.1", func() error {
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
		{"written in the new folder", "192.0.2.2", func() error { return os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(strict2), 0o600) }},
		{"folder removed", "", func() error { return os.RemoveAll(dir) }},
	}
	for _, change := range changes {
		if err := change.make(); err != nil {
			t.Fatal(err)
		}
		d.WaitPolicy(t, id, func(p *policy.Policy) bool {
			switch change.want {
			case "":
				return p.Mode == policy.ModeBlockAll
			case "*":
				return p.Mode == policy.ModeDisabled
			default:
				return len(p.Allow) == 1 && p.Allow[0].Prefix.Addr().String() == change.want
			}
		})
		t.Log(change.name)
	}
}

func (f *Folder) revisionOf(source string) string {
	for _, g := range f.current().deciding {
		if g.file.Name == source {
			return g.decision.revision
		}
	}
	return f.fallback.revision
}
