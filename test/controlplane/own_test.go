// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

func writePolicy(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An attachment that was given its policy where it was attached does not exist for the control plane: not when it comes,
// not after a restart, not in a heartbeat, not for a command that knows its id, and not when it goes.
func TestOwnPolicy(t *testing.T) {
	t.Parallel()
	w, inside := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished)
	const allowed, denied = "198.51.100.7", "203.0.113.7"
	path := writePolicy(t, "mode: allowlist\nallow: [198.51.100.0/24]\n")
	own := d.Attach(t, "--interface", w.Link, "--key", "job-7", "--policy", path)
	passes(t, inside, allowed)
	blocked(t, inside, denied)

	// The next that the control plane hears is another attachment.
	theirs := attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST"}`, "--cgroup", testenv.NewCgroup(t).Path)
	p.Send(`{"id": %q, "bulk_update": {"mode": "POLICY_MODE_DISABLED"}}`, own)
	if gone := p.Unsubscribed(); gone.ID != own || gone.Reason != reasonError {
		t.Errorf("a command for it is answered %+v, want as for any unknown id", gone)
	}
	blocked(t, inside, denied)

	d.Kill(t)
	p.Ended()
	d.Start(t)
	if sync := p.Connect(); len(sync.Attachments) != 1 || sync.Attachments[0].ID != theirs {
		t.Errorf("after a restart the control plane is told of %+v", sync.Attachments)
	}
	passes(t, inside, allowed)
	blocked(t, inside, denied)
	if shown := d.Show(t, own); shown.Pending || words(shown.Policy) != "allowlist, allow 198.51.100.0/24, dns allowlist" {
		t.Errorf("after a restart: %s", words(shown.Policy))
	}

	// The same key, another policy: in force when the command returns.
	path = writePolicy(t, "mode: allowlist\nallow: [203.0.113.0/24]\n")
	if id := d.Attach(t, "--interface", w.Link, "--key", "job-7", "--policy", path); id != own {
		t.Errorf("attached again: %s, want %s", id, own)
	}
	blocked(t, inside, allowed)
	passes(t, inside, denied)

	d.Must(t, "detach", "--key", "job-7")
	d.Must(t, "detach", "--id", theirs)
	if gone := p.Unsubscribed(); gone.ID != theirs {
		t.Errorf("the control plane is told that %s is gone", gone.ID)
	}
}

// Without a control plane to ask, what is given its policy does not need one.
func TestOwnPolicyWhileUnreachable(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromPublished)
	p.Stop()
	testenv.Eventually(t, "the daemon sees it", func() bool { return d.Status(t).ControlPlaneState != "connected" })
	cgroup := testenv.NewCgroup(t).Path
	id := d.Attach(t, "--cgroup", cgroup, "--policy", writePolicy(t, "mode: denylist\ndeny: [10.0.0.0/8]\n"))
	if shown := d.Show(t, id); shown.Attachment.Mode != "denylist" {
		t.Errorf("got %+v", shown)
	}
}

// With the policy folder as control plane, a file that matches everything does not decide either.
func TestOwnPolicyBesideFolder(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	d := harness.New(t, nil)
	d.Policy(t, "all.yaml", "mode: disabled\n")
	d.Start(t)
	own := d.Attach(t, "--cgroup", testenv.NewCgroup(t).Path, "--policy", writePolicy(t, "mode: denylist\n"))
	other := d.Attach(t, "--cgroup", testenv.NewCgroup(t).Path)
	d.Policy(t, "all.yaml", "mode: block-all\n")
	await(t, d, other, "the folder's change", func(s harness.Shown) bool { return s.Attachment.Mode == "block-all" })
	if shown := d.Show(t, own); shown.Attachment.Mode != "denylist" {
		t.Errorf("the folder decided: %s", shown.Attachment.Mode)
	}

	// What is refused leaves nothing behind.
	for text, want := range map[string]string{
		"mode: allowlist\ndns: {mode: proxy}\n":                                 "dns.mode proxy needs a remote control plane",
		"mode: allowlist\nallow: [" + strings.Repeat("10.0.0.1/8, ", 2) + "]\n": "host bits",
	} {
		r := d.Run(t, "attach", "--cgroup", testenv.NewCgroup(t).Path, "--policy", writePolicy(t, text))
		if r.Code != 1 || !strings.Contains(r.Stderr, want) {
			t.Errorf("%q: %+v", text, r)
		}
	}
	var ids []string
	for _, a := range d.List(t) {
		ids = append(ids, a.ID)
	}
	if !slices.Equal(ids, []string{own, other}) {
		t.Errorf("attached: %v", ids)
	}
}
