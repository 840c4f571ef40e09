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

// The file is a bbolt database with two buckets:
//
//	meta         format → "1", boot_id → the boot whose state it is
//	attachments  id → JSON of stored
//	             id, '/', revision (64 bits, big-endian) → JSON of policy.Policy
//
// There is no slash in an id, so an attachment and its policies stand together. A
// policy may be megabytes and is written once; the record before it is small and
// written often. One transaction writes all that one change changes. There
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
		if encoded[i], err = json.Marshal(v.Policy); err != nil {
			return f.fail("encode policy of "+a.ID, err)
		}
	}
	err = f.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(attachmentsBucket)
		for i, v := range policies {
			if err := bucket.Put(policyKey(a.ID, v.Revision), encoded[i]); err != nil {
				return err
			}
		}
		var keep []Revision
		if a.Removing == ReasonNone {
			keep = append(keep, a.Revision)
		}
		if inForce != nil {
			keep = append(keep, inForce.Revision)
		}
		if err := dropPolicies(bucket, a.ID, keep...); err != nil {
			return err
		}
		return bucket.Put([]byte(a.ID), value)
	})
	if err != nil {
		return f.fail("write", err)
	}
	return nil
}

// remove forgets an attachment.
func (f *file) remove(id string) error {
	err := f.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(attachmentsBucket)
		if err := dropPolicies(bucket, id); err != nil {
			return err
		}
		return bucket.Delete([]byte(id))
	})
	if err != nil {
		return f.fail("write", err)
	}
	return nil
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

// load reads every attachment.
func load(tx *bbolt.Tx) ([]*record, error) {
	var records []*record
	bucket := tx.Bucket(attachmentsBucket)
	keys, targets := make(map[string]bool), make(map[target.Target]bool)
	err := bucket.ForEach(func(id, value []byte) error {
		if bytes.IndexByte(id, '/') >= 0 {
			return nil // a policy, which its record asks for
		}
		r, err := loadRecord(string(id), value, bucket)
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

func loadRecord(id string, value []byte, bucket *bbolt.Bucket) (*record, error) {
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
	if r.attachment.Policy, err = loadPolicy(bucket, id, a.Revision); err != nil {
		return nil, err
	}
	if in.InForce != nil {
		r.inForce = in.InForce
		if r.inForce.Policy, err = loadPolicy(bucket, id, r.inForce.Revision); err != nil {
			return nil, err
		}
	}
	return r, nil
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
