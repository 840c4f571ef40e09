// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/netfence/netfence/policy"
)

const (
	strict  = "match: {tenant: acme}\npriority: 10\nmode: allowlist\nallow: [192.0.2.1]\n"
	strict2 = "match: {tenant: acme}\npriority: 10\nmode: allowlist\nallow: [192.0.2.2]\n"
	lax     = "mode: disabled\n"
	broken  = "mode: allowlist\nallow: [192.0.2.300]\n"
)

var acme = map[string]string{"tenant": "acme"}

// files are written into the folder; an empty text removes one.
type files map[string]string

func (f files) write(t *testing.T, dir string) {
	t.Helper()
	for name, text := range f {
		path := filepath.Join(dir, name)
		var err error
		if text == "" {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// open opens a folder that logs to the test.
func open(t *testing.T, dir string, edit ...func(*Options)) *Folder {
	t.Helper()
	opts := Options{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, e := range edit {
		e(&opts)
	}
	f, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// wantErrors wants one error for each text, which it contains.
func wantErrors(t *testing.T, what string, got []error, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: got %v, want %q", what, got, want)
	}
	for i, err := range got {
		if !strings.Contains(err.Error(), want[i]) {
			t.Errorf("%s: got %q, want something with %q", what, err, want[i])
		}
	}
}

func TestDecide(t *testing.T) {
	type step struct {
		files   files
		source  string // what decides for an attachment of acme's after it
		revised bool   // its revision changed
		errs    []string
		blocked []string
	}
	const broke = "policy a.yaml: "
	tests := []struct {
		name  string
		steps []step // the first is the state that the folder is opened in
	}{
		{"empty folder", []step{{nil, "default_policy", true, nil, nil}}},
		{"highest priority", []step{{files{"a.yaml": lax, "b.yml": strict}, "b.yml", true, nil, nil}}},
		{"ties by name", []step{{files{"b.yaml": lax, "a.yaml": "mode: block-all\n", "c.yaml": lax}, "a.yaml", true, nil, nil}}},
		{"no match", []step{{files{"a.yaml": "match: {tenant: other}\nmode: disabled\n"}, "default_policy", true, nil, nil}}},
		{"other files do not count", []step{
			{files{"a.yaml~": lax, ".a.yaml": lax, ".#a.yaml": broken, "a.yaml.swp": lax, "README": "x"}, "default_policy", true, nil, nil},
		}},
		{"changed and removed", []step{
			{files{"a.yaml": lax, "b.yaml": strict}, "b.yaml", true, nil, nil},
			{files{"b.yaml": strict2}, "b.yaml", true, nil, nil},
			{files{"b.yaml": "# the same\n" + strict2}, "b.yaml", false, nil, nil},
			{files{"b.yaml": ""}, "a.yaml", true, nil, nil},
		}},
		{"broken keeps the last good state", []step{
			{files{"a.yaml": strict, "b.yaml": lax}, "a.yaml", true, nil, nil},
			{files{"a.yaml": broken}, "a.yaml", false, []string{broke}, nil},
			{files{"b.yaml": ""}, "a.yaml", false, []string{broke}, nil},
			{files{"a.yaml": strict2}, "a.yaml", true, nil, nil},
		}},
		{"broken at the start blocks until it is mended", []step{
			{files{"a.yaml": broken, "b.yaml": lax}, "b.yaml", true, []string{broke}, []string{broke}},
			{files{"a.yaml": broken + "# still\n"}, "b.yaml", false, []string{broke}, []string{broke}},
			{files{"a.yaml": strict}, "a.yaml", true, nil, nil},
			{files{"a.yaml": broken}, "a.yaml", false, []string{broke}, nil},
		}},
		{"broken at the start blocks until it is removed", []step{
			{files{"a.yaml": broken, "b.yaml": lax}, "b.yaml", true, []string{broke}, []string{broke}},
			{files{"a.yaml": ""}, "b.yaml", false, nil, nil},
		}},
		{"added broken is as if not added yet", []step{
			{files{"b.yaml": lax}, "b.yaml", true, nil, nil},
			{files{"a.yaml": broken}, "b.yaml", false, []string{broke}, nil},
		}},
		{"shared sets", []step{
			{files{"sets.yaml": "sets: {x: [192.0.2.1]}\n", "a.yaml": "mode: allowlist\nallow: [\"set:x\"]\n"}, "a.yaml", true, nil, nil},
			{files{"sets.yaml": "sets: {x: [192.0.2.2]}\n"}, "a.yaml", true, nil, nil},
			{files{"sets.yaml": "sets: {x: [192.0.2.300]}\n"}, "a.yaml", false, []string{"sets.yaml"}, nil},
			{files{"sets.yaml": ""}, "a.yaml", false, []string{broke}, nil},
		}},
		{"sets broken at the start", []step{
			{files{"sets.yaml": "sets: 7\n", "a.yaml": "mode: allowlist\nallow: [\"set:x\"]\n"}, "default_policy", true,
				[]string{broke, "sets.yaml"}, []string{broke, "sets.yaml"}},
			{files{"sets.yaml": "sets: {x: [192.0.2.1]}\n"}, "a.yaml", true, nil, nil},
		}},
		{"needs a remote control plane", []step{
			{files{"a.yaml": "mode: allowlist\ndns: {mode: proxy}\n"}, "default_policy", true, []string{"remote control plane"}, []string{broke}},
		}},
		{"too large a command", []step{
			{files{"a.yaml": "mode: allowlist\nallow:\n" + strings.Repeat("  - 192.0.2.1\n", 5000)}, "default_policy", true, []string{"fewer rules"}, []string{broke}},
		}},
		{"too many rules", []step{
			{files{"a.yaml": "mode: allowlist\nallow: [192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4]\n"}, "a.yaml", true, nil, nil},
			{files{"a.yaml": "mode: allowlist\nallow: [" + strings.Repeat("192.0.2.1, ", 1001) + "]\n"}, "a.yaml", false, []string{"limits.rules"}, nil},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			var f *Folder
			revision := ""
			for i, step := range tt.steps {
				step.files.write(t, dir)
				if f == nil {
					f = open(t, dir, func(o *Options) {
						o.MaxCommandBytes = 32 << 10
						o.Limits.Rules = 1000
						if strings.Contains(tt.name, "too large") {
							o.Limits.Rules = 0
						}
					})
				} else {
					f.Load()
				}
				decided := f.decide(f.current(), acme)
				if decided.source != step.source || (decided.revision != revision) != step.revised {
					t.Fatalf("step %d: decided by %s (revised: %v), want %s (%v)",
						i, decided.source, decided.revision != revision, step.source, step.revised)
				}
				revision = decided.revision
				wantErrors(t, "errors", f.Errors(), step.errs...)
				wantErrors(t, "blocked", f.current().blocked, step.blocked...)
				if (f.Ready() == nil) != (step.blocked == nil) {
					t.Errorf("step %d: ready: %v", i, f.Ready())
				}
			}
		})
	}
}

// TestUnchangedFolderKeepsItsSnapshot: a rescan must not make every attachment be looked at.
func TestUnchangedFolderKeepsItsSnapshot(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": strict, "b.yaml": broken, "sets.yaml": "sets: {}\n"}.write(t, dir)
	f := open(t, dir)
	before := f.current()
	f.Load()
	if f.current() != before {
		t.Error("a new snapshot of an unchanged folder")
	}
}

func TestFolderMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policies")
	f := open(t, dir, func(o *Options) {
		o.Default = &policy.Policy{Mode: policy.ModeDisabled, DNS: policy.DNS{Mode: policy.DNSDisabled}}
	})
	if f.Ready() != nil || len(f.Errors()) != 0 || !f.current().missing {
		t.Fatalf("a missing folder counts as empty: ready %v, errors %v", f.Ready(), f.Errors())
	}
	if got := f.decide(f.current(), acme); got.source != "default_policy" || got.policy.Mode != policy.ModeDisabled {
		t.Errorf("decided by %s", got.source)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	files{"a.yaml": strict}.write(t, dir)
	f.Load()
	if got := f.decide(f.current(), acme); got.source != "a.yaml" {
		t.Errorf("decided by %s", got.source)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	f.Load()
	if got := f.decide(f.current(), acme); got.source != "default_policy" || !f.current().missing {
		t.Errorf("decided by %s", got.source)
	}
}

// TestFolderUnreadable: unlike a missing one it may hold anything.
func TestFolderUnreadable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policies")
	files{"policies": "not a directory"}.write(t, filepath.Dir(dir))
	f := open(t, dir)
	wantErrors(t, "blocked", f.current().blocked, "not a directory")

	// What is broken when the folder can be read at last is broken from the start.
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	files{"a.yaml": broken, "b.yaml": strict}.write(t, dir)
	f.Load()
	wantErrors(t, "blocked", f.current().blocked, "a.yaml")
	files{"a.yaml": ""}.write(t, dir)
	f.Load()
	if err := f.Ready(); err != nil {
		t.Fatal(err)
	}

	// Later on the last good state is kept.
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	files{"policies": "not a directory"}.write(t, filepath.Dir(dir))
	f.Load()
	wantErrors(t, "errors", f.Errors(), "not a directory")
	if got := f.decide(f.current(), acme); got.source != "b.yaml" || f.Ready() != nil {
		t.Errorf("decided by %s, ready: %v", got.source, f.Ready())
	}
}

func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	files{"large.yaml": strings.Repeat("#", policy.MaxFile+1)}.write(t, dir)
	wantErrors(t, "errors", open(t, dir).Errors(),
		"dir.yaml: is not a regular file", "fifo.yaml: is not a regular file", "large.yaml: 8388609 bytes", "link.yaml")
}

func TestDefaultPolicyIsChecked(t *testing.T) {
	_, err := Open(Options{Dir: t.TempDir(), Default: &policy.Policy{Source: []policy.Source{{}}}})
	if err == nil || !strings.Contains(err.Error(), "default_policy: source entry 1") {
		t.Errorf("got %v", err)
	}
}
