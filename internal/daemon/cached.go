// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/netfence/netfence/internal/cached"
	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

const cacheFile = "policies.db"

// openCache opens the cache where attaches are to use it. A damaged one is begun anew, and said.
func (d *daemon) openCache() (err error) {
	if d.config.ControlPlane.AttachWhenUnreachable != config.UnreachableCached {
		return nil
	}
	if err := os.MkdirAll(d.config.DataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	d.cache, err = cached.Open(filepath.Join(d.config.DataDir, cacheFile), d.config.Limits.Attachments)
	var damaged *cached.DamagedError
	if errors.As(err, &damaged) {
		d.log.Warn("attaches with a cached policy fail until the control plane has given it again", "err", err)
		return nil
	}
	return err
}

func (d *daemon) cached(key string) (*policy.Policy, error) {
	if d.cache == nil {
		return nil, nil
	}
	return d.cache.Get(key)
}

// cacheInterval is how long changes are waited for that go into the cache together.
const cacheInterval = time.Second

// cachePolicies keeps what is in force for each key. What could not be written is tried again with the next change.
func (d *daemon) cachePolicies(ctx context.Context) error {
	kept := make(map[string]state.Revision) // by attachment
	for {
		changed := d.store.Changed()
		if err := d.cacheChanges(kept); err != nil {
			d.log.Error("policies not cached", "err", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(cacheInterval):
		case <-ctx.Done(): // and once more
		}
	}
}

// cacheChanges writes what is in force and not in kept yet.
func (d *daemon) cacheChanges(kept map[string]state.Revision) error {
	boot, err := datapath.BootClock()
	if err != nil {
		return err
	}
	var (
		entries []cached.Entry
		noted   = make(map[string]state.Revision)
		here    = make(map[string]bool)
	)
	for _, a := range d.store.List() {
		here[a.ID] = true
		if a.Key == "" || a.OwnPolicy || a.Pending || a.Removing != state.ReasonNone || kept[a.ID] == a.Revision {
			continue
		}
		if _, st, err := d.store.Get(a.ID); err != nil || st.Applied != a.Revision {
			continue // there is another change when it is in force
		}
		entries = append(entries, cached.Entry{Key: a.Key, Policy: a.Policy, At: time.Now()})
		noted[a.ID] = a.Revision
	}
	for id := range kept {
		if !here[id] {
			delete(kept, id)
		}
	}
	if len(entries) == 0 {
		return nil
	}
	if err := d.cache.Put(entries, boot); err != nil {
		return err
	}
	for id, revision := range noted {
		kept[id] = revision
	}
	return nil
}
