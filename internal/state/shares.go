// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/netfence/netfence/policy"
)

var (
	namedBucket  = []byte("named")
	sharedBucket = []byte("shared")
)

// storedNamed is a named policy in the file; the policy itself is under its serial.
type storedNamed struct {
	Revision string `json:"revision,omitempty"`
	Serial   uint64 `json:"serial"`
}

// shares counts who has which shared policy: a name, or an attachment by what is desired or in force.
type shares struct {
	mu     sync.Mutex
	owners map[string][]uint64
	counts map[uint64]int
}

// hold notes what owner has from now on, instead of what it had. Serial 0 is none.
func (h *shares) hold(owner string, serials []uint64) {
	if h.owners == nil {
		h.owners, h.counts = make(map[string][]uint64), make(map[uint64]int)
	}
	for _, serial := range h.owners[owner] {
		if h.counts[serial]--; h.counts[serial] == 0 {
			delete(h.counts, serial)
		}
	}
	delete(h.owners, owner)
	for _, serial := range serials {
		if serial != 0 {
			h.owners[owner] = append(h.owners[owner], serial)
			h.counts[serial]++
		}
	}
}

// nameOwner is the owner that a name is: no attachment's id begins with a slash.
func nameOwner(name string) string { return "/" + name }

// update writes, in one transaction, what owner is to be and have, and drops the shared policies that nobody has then.
func (f *file) update(owner string, serials []uint64, write func(*bbolt.Tx) error) error {
	f.shares.mu.Lock()
	defer f.shares.mu.Unlock()
	had := f.shares.owners[owner]
	f.shares.hold(owner, serials)
	err := f.db.Update(func(tx *bbolt.Tx) error {
		if err := write(tx); err != nil {
			return err
		}
		for _, serial := range had {
			if f.shares.counts[serial] == 0 {
				if err := tx.Bucket(sharedBucket).Delete(sharedKey(serial)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		f.shares.hold(owner, had)
		return f.fail("write", err)
	}
	return nil
}

// put writes a named policy, and returns the serial of its one copy.
func (f *file) put(n Named) (serial uint64, err error) {
	err = f.db.Update(func(tx *bbolt.Tx) error {
		serial, err = tx.Bucket(sharedBucket).NextSequence()
		return err
	})
	if err != nil {
		return 0, f.fail("write", err)
	}
	value, err := json.Marshal(storedNamed{n.Revision, serial})
	if err != nil {
		return 0, f.fail("encode policy "+n.Name, err)
	}
	return serial, f.update(nameOwner(n.Name), []uint64{serial}, func(tx *bbolt.Tx) error {
		if err := putShared(tx, serial, n.Policy); err != nil {
			return err
		}
		return tx.Bucket(namedBucket).Put([]byte(n.Name), value)
	})
}

// drop forgets a name.
func (f *file) drop(name string) error {
	return f.update(nameOwner(name), nil, func(tx *bbolt.Tx) error { return tx.Bucket(namedBucket).Delete([]byte(name)) })
}

// putShared writes a shared policy, unless it is there: what a serial names does not change.
func putShared(tx *bbolt.Tx, serial uint64, p *policy.Policy) error {
	bucket := tx.Bucket(sharedBucket)
	if bucket.Get(sharedKey(serial)) != nil {
		return nil
	}
	value, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return bucket.Put(sharedKey(serial), value)
}

func sharedKey(serial uint64) []byte { return binary.BigEndian.AppendUint64(nil, serial) }

// loadShared reads the policies that are there once. A file of an earlier version has none.
func loadShared(tx *bbolt.Tx) (map[uint64]*policy.Policy, error) {
	shared := make(map[uint64]*policy.Policy)
	bucket := tx.Bucket(sharedBucket)
	if bucket == nil {
		return shared, nil
	}
	return shared, bucket.ForEach(func(key, value []byte) error {
		if len(key) != 8 {
			return fmt.Errorf("shared policy %x: not a serial", key)
		}
		p := new(policy.Policy)
		if err := json.Unmarshal(value, p); err != nil {
			return fmt.Errorf("shared policy %x: %w", key, err)
		}
		shared[binary.BigEndian.Uint64(key)] = p
		return nil
	})
}

func loadNamed(tx *bbolt.Tx, shared map[uint64]*policy.Policy) ([]named, error) {
	bucket := tx.Bucket(namedBucket)
	if bucket == nil {
		return nil, nil
	}
	var list []named
	return list, bucket.ForEach(func(name, value []byte) error {
		var in storedNamed
		d := json.NewDecoder(bytes.NewReader(value))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			return fmt.Errorf("policy %q: %w", name, err)
		}
		p := shared[in.Serial]
		if p == nil {
			return fmt.Errorf("policy %q: no shared policy %d", name, in.Serial)
		}
		list = append(list, named{Named{string(name), in.Revision, p}, in.Serial})
		return nil
	})
}
