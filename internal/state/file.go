// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// The file is a bbolt database with these buckets:
//
//	meta         format → "1", boot_id → the boot whose state it is
//	attachments  id → JSON of stored
//	             id, '/', revision (64 bits, big-endian) → JSON of policy.Policy
//	named        name of a policy → JSON of storedNamed
//	shared       serial (64 bits, big-endian) → JSON of policy.Policy
//
// There is no slash in an id, so an attachment and its policies stand together. A
// policy may be megabytes and is written once; the record before it is small and
// written often. A named policy is there once, under its serial, for as long as its
// name or an attachment has it. One transaction writes all that one change changes. There
// is no fsync: a crash of the daemon loses no write, and a crash of the kernel
// ends the boot and thereby what the file speaks of.

const format = "1"

var (
	metaBucket        = []byte("meta")
	attachmentsBucket = []byte("attachments")

	formatKey = []byte("format")
	bootIDKey = []byte("boot_id")
)

// stored is an attachment in the file. Both revisions have a policy beside it,
// unless the attachment is on its way out: then none is needed.
type stored struct {
	Attachment
	// InForce is the version that the kernel was last seen to hold: what to
	// go back to if it refuses the attachment's. Absent: it held none yet.
	InForce *version `json:"in_force,omitempty"`
}

type file struct {
	db   *bbolt.DB
	path string
	// shares counts who has which shared policy; whoever writes holds its lock.
	shares shares
}

// save writes a, and the policies of the versions given. inForce may be nil; its
// policy was given to an earlier save. Policies of other revisions go.
func (f *file) save(a *Attachment, inForce *version, policies ...version) error {
	if a.Removing != ReasonNone {
		inForce = nil
	}
	value, err := json.Marshal(stored{*a, inForce})
	if err != nil {
		return f.fail("encode attachment "+a.ID, err)
	}
	encoded := make([][]byte, len(policies))
	for i, v := range policies {
		if v.Serial != 0 {
			continue
		}
		if encoded[i], err = json.Marshal(v.Policy); err != nil {
			return f.fail("encode policy of "+a.ID, err)
		}
	}
	var (
		keep   []Revision
		shared []uint64
	)
	if a.Removing == ReasonNone {
		keep, shared = append(keep, a.Revision), append(shared, a.Serial)
	}
	if inForce != nil {
		keep, shared = append(keep, inForce.Revision), append(shared, inForce.Serial)
	}
	return f.update(a.ID, shared, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(attachmentsBucket)
		for i, v := range policies {
			if v.Serial != 0 {
				if err := putShared(tx, v.Serial, v.Policy); err != nil {
					return err
				}
			} else if err := bucket.Put(policyKey(a.ID, v.Revision), encoded[i]); err != nil {
				return err
			}
		}
		if err := dropPolicies(bucket, a.ID, keep...); err != nil {
			return err
		}
		return bucket.Put([]byte(a.ID), value)
	})
}

// remove forgets an attachment.
func (f *file) remove(id string) error {
	return f.update(id, nil, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(attachmentsBucket)
		if err := dropPolicies(bucket, id); err != nil {
			return err
		}
		return bucket.Delete([]byte(id))
	})
}

func (f *file) close() error {
	if err := f.db.Close(); err != nil {
		return f.fail("close", err)
	}
	return nil
}

func (f *file) fail(operation string, err error) error {
	return fmt.Errorf("state file %s: %s: %w", f.path, operation, err)
}

// load reads every attachment. shared are the policies that some have in common.
func load(tx *bbolt.Tx, shared map[uint64]*policy.Policy) ([]*record, error) {
	var records []*record
	bucket := tx.Bucket(attachmentsBucket)
	keys, targets := make(map[string]bool), make(map[target.Target]bool)
	err := bucket.ForEach(func(id, value []byte) error {
		if bytes.IndexByte(id, '/') >= 0 {
			return nil // a policy, which its record asks for
		}
		r, err := loadRecord(string(id), value, bucket, shared)
		if err != nil {
			return fmt.Errorf("attachment %s: %w", id, err)
		}
		key, t := r.attachment.Key, identity(r.attachment.Target)
		if keys[key] || targets[t] {
			return fmt.Errorf("attachment %s: its target or key is another's", id)
		}
		keys[key], targets[t] = key != "", true
		records = append(records, r)
		return nil
	})
	return records, err
}

func loadRecord(id string, value []byte, bucket *bbolt.Bucket, shared map[uint64]*policy.Policy) (*record, error) {
	var in stored
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields() // it may be a restriction
	if err := d.Decode(&in); err != nil {
		return nil, err
	}
	a := in.Attachment
	if a.ID != id || a.Target.Type == 0 || a.Revision == 0 {
		return nil, fmt.Errorf("not a whole record")
	}
	r := &record{attachment: a, last: a.Revision}
	if a.Removing != ReasonNone {
		r.attachment.Policy = policy.BlockAll()
		return r, nil
	}
	var err error
	if r.attachment.Policy, err = loadVersion(bucket, id, a.version(), shared); err != nil {
		return nil, err
	}
	if in.InForce != nil {
		r.inForce = in.InForce
		if r.inForce.Policy, err = loadVersion(bucket, id, *r.inForce, shared); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func loadVersion(bucket *bbolt.Bucket, id string, v version, shared map[uint64]*policy.Policy) (*policy.Policy, error) {
	if v.Serial == 0 {
		return loadPolicy(bucket, id, v.Revision)
	}
	if p := shared[v.Serial]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no shared policy %d", v.Serial)
}

func loadPolicy(bucket *bbolt.Bucket, id string, rev Revision) (*policy.Policy, error) {
	value := bucket.Get(policyKey(id, rev))
	if value == nil {
		return nil, fmt.Errorf("no policy of revision %d", rev)
	}
	p := new(policy.Policy)
	if err := json.Unmarshal(value, p); err != nil {
		return nil, fmt.Errorf("policy of revision %d: %w", rev, err)
	}
	return p, nil
}

// dropPolicies deletes the policies of id but for the revisions to keep.
func dropPolicies(bucket *bbolt.Bucket, id string, keep ...Revision) error {
	prefix := []byte(id + "/")
	var drop [][]byte // a cursor skips keys when they go from under it
	c := bucket.Cursor()
	for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
		kept := false
		for _, rev := range keep {
			kept = kept || bytes.Equal(key, policyKey(id, rev))
		}
		if !kept {
			drop = append(drop, bytes.Clone(key))
		}
	}
	for _, key := range drop {
		if err := bucket.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

func policyKey(id string, rev Revision) []byte {
	return binary.BigEndian.AppendUint64([]byte(id+"/"), uint64(rev))
}
