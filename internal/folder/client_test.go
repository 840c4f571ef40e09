// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// TestThroughTheClient puts the real client between the folder and a store. What stands for the kernel
// takes everything at once: no packet is judged here.
func TestThroughTheClient(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": strict}.write(t, dir)
	f := open(t, dir)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	store, err := state.Open(filepath.Join(t.TempDir(), "state.db"), "boot", state.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	client, err := controlclient.New(controlclient.Options{
		Dial: func(ctx context.Context, _ string) (controlclient.Conn, error) { return f.Dial(ctx) }, Addresses: []string{"folder"},
		Store: store, DaemonID: "d", Ready: f.Ready, AckTimeout: time.Minute, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{f.serve, client.Run, func(ctx context.Context) error { return comply(ctx, store) }} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	defer func() {
		cancel()
		running.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	attach := func(id string, metadata map[string]string) error {
		_, _, err := store.Create(state.Attachment{
			ID: id, Metadata: metadata, Pending: true, Held: true,
			Target: target.Target{Type: target.Cgroup, Name: "/" + id, CgroupID: uint64(id[0])},
		})
		if err != nil {
			t.Fatal(err)
		}
		return client.Subscribe(ctx, id)
	}
	waitFor := func(id string, condition func(*policy.Policy) bool) {
		for {
			changed := store.Changed()
			_, status, err := store.Get(id)
			if err != nil {
				t.Fatal(err)
			}
			if status.InForce != nil && condition(status.InForce) {
				return
			}
			<-changed
		}
	}

	if err := attach("1", acme); err != nil {
		t.Fatal(err)
	}
	if err := attach("2", nil); err != nil {
		t.Fatal(err)
	}
	waitFor("1", func(p *policy.Policy) bool {
		return p.Mode == policy.ModeAllowlist && p.Allow[0].Prefix.String() == "192.0.2.1/32"
	})
	waitFor("2", func(p *policy.Policy) bool { return p.Mode == policy.ModeBlockAll })

	files{"a.yaml": strict2}.write(t, dir)
	f.Load()
	waitFor("1", func(p *policy.Policy) bool { return p.Allow[0].Prefix.String() == "192.0.2.2/32" })
	if a, _, _ := store.Get("1"); a.PolicyRevision != f.revisionOf("a.yaml") {
		t.Errorf("revision %q", a.PolicyRevision)
	}
}

func TestAttachWhileBroken(t *testing.T) {
	dir := t.TempDir()
	files{"a.yaml": broken, "b.yaml": lax}.write(t, dir)
	f := open(t, dir)
	store, err := state.Open(filepath.Join(t.TempDir(), "state.db"), "boot", state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	client, err := controlclient.New(controlclient.Options{
		Dial: func(ctx context.Context, _ string) (controlclient.Conn, error) { return f.Dial(ctx) }, Addresses: []string{"folder"},
		Store: store, DaemonID: "d", Ready: f.Ready, AckTimeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	err = client.Subscribe(t.Context(), "1")
	var refused *controlclient.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "a.yaml") || !strings.Contains(err.Error(), "192.0.2.300") {
		t.Errorf("the attach must fail and name file and error, got %v", err)
	}
}

// comply reports everything that is desired as done.
func comply(ctx context.Context, store *state.Store) error {
	for {
		select {
		case <-store.Dirty():
		case <-ctx.Done():
			return nil
		}
		for _, id := range store.TakeDirty() {
			d, err := store.Desired(id)
			if err != nil {
				return err
			}
			if err := store.InForce(d); err != nil {
				return err
			}
		}
	}
}
