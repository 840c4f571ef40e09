// SPDX-License-Identifier: Apache-2.0

// Package cached keeps, over reboots, the last policy that a control plane has given for each key that callers attach
// with: what control_plane.attach_when_unreachable: cached attaches with.
//
// The file is a bbolt database, whose transactions are whole or not at all, also when the power fails in one. A policy is
// there once, however many keys have it.
package cached

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/netfence/netfence/policy"
)

// keys: key → when (seconds since 1970, 64 bits) and the SHA-256 of the policy. policies: SHA-256 → JSON.
var (
	keysBucket     = []byte("keys")
	policiesBucket = []byte("policies")
)

// lockTimeout is how long Open waits for a daemon that is on its way out.
const lockTimeout = 500 * time.Millisecond

// Cache is the open file. Its methods may be called from any goroutine.
type Cache struct {
	db  *bbolt.DB
	max int
}

// Entry is what one key had last.
type Entry struct {
	Key    string
	Policy *policy.Policy
	At     time.Time // when it was in force
}

// DamagedError says that the file could not be read, and where it is now.
type DamagedError struct {
	Path string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("cached policies: unreadable, set aside as %s: %v", e.Path, e.Err)
}

// Open opens the file at path, or makes it; max keys stay, the newest. With a *DamagedError it is a new one: what was in
// it is not known any more, and an attach that would have needed it fails.
func Open(path string, limit int) (*Cache, error) {
	c, err := open(path, limit)
	if err == nil || errors.Is(err, bbolterrors.ErrTimeout) || errors.As(err, new(*fs.PathError)) || errors.As(err, new(syscall.Errno)) {
		return c, err // the system's errors are not the file's
	}
	aside := path + ".damaged"
	if renameErr := os.Rename(path, aside); renameErr != nil {
		return nil, errors.Join(err, renameErr)
	}
	c, newErr := open(path, limit)
	if newErr != nil {
		return nil, newErr
	}
	return c, &DamagedError{aside, err}
}

// open reads the whole file once. An error is also made of a panic or a fault: bbolt trusts what it maps.
func open(path string, limit int) (c *Cache, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			c, err = nil, fmt.Errorf("cached policies %s: %v", path, r)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, NoStatistics: true})
	if err != nil {
		return nil, fmt.Errorf("cached policies %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{keysBucket, policiesBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return tx.Bucket(keysBucket).ForEach(func(key, _ []byte) error {
			_, err := get(tx, string(key))
			return err
		})
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cached policies %s: %w", path, err), db.Close())
	}
	return &Cache{db, limit}, nil
}

// Get returns the last policy of a key; nil: none is known. Lives of rules are turned into times of day: they do not begin
// anew with it.
func (c *Cache) Get(key string) (p *policy.Policy, err error) {
	err = c.db.View(func(tx *bbolt.Tx) error {
		p, err = get(tx, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cached policy of key %s: %w", key, err)
	}
	return p, nil
}

func get(tx *bbolt.Tx, key string) (*policy.Policy, error) {
	value := tx.Bucket(keysBucket).Get([]byte(key))
	switch {
	case value == nil:
		return nil, nil
	case len(value) != 8+sha256.Size:
		return nil, fmt.Errorf("key %s: not a record", key)
	}
	data := tx.Bucket(policiesBucket).Get(value[8:])
	if sha256.Sum256(data) != [sha256.Size]byte(value[8:]) {
		return nil, fmt.Errorf("key %s: its policy is missing, or another", key)
	}
	p := new(policy.Policy)
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("key %s: %w", key, err)
	}
	return p, nil
}

// Put notes what is in force, all entries or none, and returns when that is on disk. boot is the boot clock at At.
func (c *Cache) Put(entries []Entry, boot time.Duration) error {
	err := c.db.Update(func(tx *bbolt.Tx) error {
		for _, e := range entries {
			data, err := json.Marshal(lasting(e.Policy, boot, e.At))
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			if err := tx.Bucket(policiesBucket).Put(sum[:], data); err != nil {
				return err
			}
			value := append(binary.BigEndian.AppendUint64(nil, uint64(e.At.Unix())), sum[:]...)
			if err := tx.Bucket(keysBucket).Put([]byte(e.Key), value); err != nil {
				return err
			}
		}
		return c.prune(tx)
	})
	if err != nil {
		return fmt.Errorf("cached policies: %w", err)
	}
	return nil
}

// prune drops the oldest keys beyond max, and the policies that no key has.
func (c *Cache) prune(tx *bbolt.Tx) error {
	type known struct {
		key string
		at  uint64
		sum string
	}
	var all []known
	err := tx.Bucket(keysBucket).ForEach(func(key, value []byte) error {
		all = append(all, known{string(key), binary.BigEndian.Uint64(value), string(value[8:])})
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b known) int { return int(int64(b.at) - int64(a.at)) })
	used := make(map[string]bool)
	for i, k := range all {
		if i < c.max {
			used[k.sum] = true
		} else if err := tx.Bucket(keysBucket).Delete([]byte(k.key)); err != nil {
			return err
		}
	}
	var unused [][]byte // a cursor skips keys when they go from under it
	err = tx.Bucket(policiesBucket).ForEach(func(sum, _ []byte) error {
		if !used[string(sum)] {
			unused = append(unused, slices.Clone(sum))
		}
		return nil
	})
	for _, sum := range unused {
		err = errors.Join(err, tx.Bucket(policiesBucket).Delete(sum))
	}
	return err
}

// Close releases the file.
func (c *Cache) Close() error { return c.db.Close() }

// lasting is p without what ends with this boot: deadlines are times of day.
func lasting(p *policy.Policy, boot time.Duration, wall time.Time) *policy.Policy {
	out := *p
	out.Allow, out.Deny = lastingRules(p.Allow, boot, wall), lastingRules(p.Deny, boot, wall)
	return &out
}

func lastingRules(rules []policy.Rule, boot time.Duration, wall time.Time) []policy.Rule {
	out := slices.Clone(rules)
	for i := range out {
		if r := &out[i]; r.Deadline != 0 {
			r.ExpiresAt = wall.Add(r.Deadline - boot).Truncate(time.Second).UTC()
			r.TTL, r.Deadline = 0, 0
		}
	}
	return out
}
