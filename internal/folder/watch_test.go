// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestReload runs on a fake clock: each hint is given at a time, each read is expected at one.
func TestReload(t *testing.T) {
	every := func(step, until time.Duration) (at []time.Duration) {
		for d := step; d <= until; d += step {
			at = append(at, d)
		}
		return at
	}
	tests := []struct {
		name  string
		hints []time.Duration
		want  []time.Duration // reads before the first rescan
	}{
		{"nothing", nil, nil},
		{"one change", []time.Duration{time.Second}, []time.Duration{time.Second + settle}},
		{"a burst is read once", every(10*time.Millisecond, 100*time.Millisecond), []time.Duration{100*time.Millisecond + settle}},
		{"two changes", []time.Duration{1 * time.Second, 3 * time.Second}, []time.Duration{1*time.Second + settle, 3*time.Second + settle}},
		{"never quiet", every(50*time.Millisecond, 3*time.Second), []time.Duration{50*time.Millisecond + hold, 3*time.Second + settle}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), rescan+time.Second)
				defer cancel()
				hints := make(chan struct{})
				go func() {
					for _, at := range tt.hints {
						<-time.After(at - time.Since(start)) // fake time
						hints <- struct{}{}
					}
				}()
				var got []time.Duration
				reload(ctx, hints, func() { got = append(got, time.Since(start)) })
				want := append(slices.Clone(tt.want), rescan)
				if !slices.Equal(got, want) {
					t.Errorf("read at %v, want %v", got, want)
				}
			})
		})
	}
}

// TestNotifier makes each kind of change on a real file system and waits for its hint.
func TestNotifier(t *testing.T) {
	write := func(path string) func(string) error {
		return func(root string) error { return os.WriteFile(filepath.Join(root, path), []byte("x"), 0o600) }
	}
	mkdir := func(path string) func(string) error {
		return func(root string) error { return os.MkdirAll(filepath.Join(root, path), 0o700) }
	}
	rename := func(from, to string) func(string) error {
		return func(root string) error { return os.Rename(filepath.Join(root, from), filepath.Join(root, to)) }
	}
	link := func(to, from string) func(string) error {
		return func(root string) error { return os.Symlink(to, filepath.Join(root, from)) }
	}
	tests := []struct {
		name    string
		before  []func(root string) error
		changes []func(root string) error // a hint must follow each
	}{
		{"written in place", []func(string) error{mkdir("p"), write("p/a.yaml")}, []func(string) error{write("p/a.yaml")}},
		{"renamed into place", []func(string) error{mkdir("p"), write("p/a.yaml"), write("new")}, []func(string) error{rename("new", "p/a.yaml")}},
		{"folder made later", nil, []func(string) error{mkdir("p"), write("p/a.yaml")}},
		{"folder replaced", []func(string) error{mkdir("p"), mkdir("q")},
			[]func(string) error{rename("p", "old"), rename("q", "p"), write("p/a.yaml")}},
		{"folder is a link that moves on", []func(string) error{mkdir("v1"), mkdir("v2"), link("v1", "p"), link("v2", "next")},
			[]func(string) error{write("v1/a.yaml"), rename("next", "p"), write("v2/a.yaml")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for _, step := range tt.before {
				if err := step(root); err != nil {
					t.Fatal(err)
				}
			}
			n, err := newNotifier(filepath.Join(root, "p"))
			if err != nil {
				t.Fatal(err)
			}
			hints := make(chan struct{}, 1)
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { n.run(ctx, hints, func(err error) { t.Errorf("watch: %v", err) }) })
			defer func() {
				cancel()
				running.Wait()
				if err := n.close(); err != nil {
					t.Error(err)
				}
			}()
			for _, change := range tt.changes {
				if err := n.arm(); err != nil {
					t.Fatal(err)
				}
				if err := change(root); err != nil {
					t.Fatal(err)
				}
				<-hints
			}
		})
	}
}

// TestNotifierIgnoresNeighbours: the directory above the folder may be a busy one.
func TestNotifierIgnoresNeighbours(t *testing.T) {
	n := &notifier{dir: "/etc/netfence/policies"}
	for path, want := range map[string]bool{
		"/etc/netfence/policies":        true,
		"/etc/netfence/policies/a.yaml": true,
		"/etc/netfence":                 true,
		"/etc/netfence/config.yaml":     false,
		"/etc/netfence/policies.bak":    false,
		"/etc/passwd":                   false,
	} {
		if got := n.concerns(path); got != want {
			t.Errorf("concerns(%s) = %v, want %v", path, got, want)
		}
	}
}
