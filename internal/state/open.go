// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// lockTimeout is how long Open waits for a daemon that is on its way out.
const lockTimeout = 500 * time.Millisecond

const (
	defaultAttachments   = 32768
	defaultMetadataBytes = 4096
)

// Open adopts the state of this boot in the file at path, or makes the file. A
// file of another boot speaks of attachments that ended with it: it is moved to
// path.previous. Every attachment comes back dirty, and those that were Held on
// their way out.
//
// The error is ErrInUse, *CorruptError, or the system's; the file is then as it
// was.
func Open(path, bootID string, opts Options) (*Store, error) {
	s := &Store{
		limits:   opts.Limits,
		guard:    opts.Guard,
		clock:    opts.Clock,
		log:      opts.Log,
		records:  make(map[string]*record),
		byKey:    make(map[string]*record),
		byTarget: make(map[target.Target]*record),
		dirty:    newMarks(),
		moved:    newMarks(),
		changed:  make(chan struct{}),
		gone:     make(map[string]grave),
		named:    make(map[string]named),
	}
	if s.limits.Attachments == 0 {
		s.limits.Attachments = defaultAttachments
	}
	if s.limits.MetadataBytes == 0 {
		s.limits.MetadataBytes = defaultMetadataBytes
	}
	if s.clock == nil {
		s.clock = SystemClock{}
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	err := guard(path, func() error {
		c, err := s.inherit(path, bootID)
		if err != nil {
			return err
		}
		if s.file, err = openFile(path, bootID, c.last); err != nil {
			return err
		}
		if err := s.adopt(c); err != nil {
			return errors.Join(err, s.file.close())
		}
		s.catchUp()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// guard makes an error of a panic or a fault: bbolt trusts what it maps, and a
// damaged page may point anywhere. The file may be left open and locked then,
// until the process ends.
func guard(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &CorruptError{path, fmt.Errorf("%v", r)}
		}
	}()
	return f()
}

// contents is what a file holds.
type contents struct {
	bootID  string
	records []*record
	named   []named
	last    int // transaction
}

// inherit reads the file, unless it is another boot's: then it moves it away.
func (s *Store) inherit(path, bootID string) (contents, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return contents{}, nil
	case err != nil:
		return contents{}, fmt.Errorf("state file: %w", err)
	case !info.Mode().IsRegular():
		return contents{}, &CorruptError{path, errors.New("not a regular file")}
	case info.Size() == 0: // its maker died before the first write
		return contents{}, nil
	}
	c, err := inspect(path)
	if err != nil || c.bootID == "" || c.bootID == bootID {
		return c, err
	}
	previous := path + ".previous"
	if err := os.Rename(path, previous); err != nil {
		return contents{}, fmt.Errorf("state file of another boot: %w", err)
	}
	s.log.Info("state of another boot set aside", "path", previous, "boot_id", c.bootID)
	return contents{}, nil
}

// inspect reads the whole file before anything writes to it.
func inspect(path string) (c contents, err error) {
	db, err := openBolt(path, true)
	if err != nil {
		return contents{}, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bbolt.Tx) error {
		c.last = tx.ID()
		if err := check(tx); err != nil {
			return err
		}
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			if name, _ := tx.Cursor().First(); name != nil {
				return errors.New("not a state file")
			}
			return nil // its maker died before the second write
		}
		if found := string(meta.Get(formatKey)); found != format {
			return fmt.Errorf("format %q, this version reads %q", found, format)
		}
		c.bootID = string(meta.Get(bootIDKey))
		shared, err := loadShared(tx)
		if err != nil {
			return err
		}
		if c.named, err = loadNamed(tx, shared); err != nil {
			return err
		}
		c.records, err = load(tx, shared)
		return err
	})
	if err != nil {
		return contents{}, &CorruptError{path, err}
	}
	return c, nil
}

// check visits every page in use, and tells whether seeking finds what walking
// does. It stands for bbolt's own check, which works in a goroutine that nobody
// can recover, and does not always end.
func check(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
		return bucket.ForEach(func(key, value []byte) error {
			if !bytes.Equal(bucket.Get(key), value) {
				return fmt.Errorf("%s: keys out of order", name)
			}
			return nil
		})
	})
}

// openFile opens the file for writing and makes what is not there yet. last is
// the transaction up to which it was read.
func openFile(path, bootID string, last int) (*file, error) {
	db, err := openBolt(path, false)
	if err != nil {
		return nil, err
	}
	f := &file{db: db, path: path}
	err = db.Update(func(tx *bbolt.Tx) error {
		isNew := tx.Bucket(metaBucket) == nil
		if !isNew && tx.ID() != last+1 { // somebody else had it since
			return ErrInUse
		}
		for _, name := range [][]byte{metaBucket, attachmentsBucket, namedBucket, sharedBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		if !isNew {
			return nil
		}
		meta := tx.Bucket(metaBucket)
		return errors.Join(meta.Put(formatKey, []byte(format)), meta.Put(bootIDKey, []byte(bootID)))
	})
	if err != nil {
		return nil, errors.Join(f.fail("open", err), f.close())
	}
	return f, nil
}

func openBolt(path string, readOnly bool) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:  lockTimeout,
		ReadOnly: readOnly,
		NoSync:   true, NoGrowSync: true, // see file.go
		// The list of free pages is in the file: bbolt would rebuild it as it
		// checks.
		FreelistType: bbolt.FreelistMapType, PreLoadFreelist: true,
		NoStatistics: true,
	})
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fmt.Errorf("state file %s: %w", path, ErrInUse)
	case errors.Is(err, bbolterrors.ErrInvalid), errors.Is(err, bbolterrors.ErrChecksum),
		errors.Is(err, bbolterrors.ErrVersionMismatch):
		return nil, &CorruptError{path, err}
	case err != nil:
		return nil, fmt.Errorf("state file: %w", err)
	}
	return db, nil
}

// adopt takes over what the file holds.
func (s *Store) adopt(c contents) error {
	for _, n := range c.named {
		s.named[n.Name] = n
		s.file.shares.hold(nameOwner(n.Name), []uint64{n.serial})
	}
	for _, r := range c.records {
		serials := []uint64{r.attachment.Serial}
		if r.inForce != nil {
			serials = append(serials, r.inForce.Serial)
		}
		s.file.shares.hold(r.attachment.ID, serials)
	}
	for _, r := range c.records {
		a := &r.attachment
		if a.Held && a.Removing == ReasonNone {
			a.Removing, a.ReasonText = ReasonError, "the daemon ended before the attach was done"
			a.Policy, a.Revision, r.inForce = policy.BlockAll(), Removal, nil
			if err := s.file.save(a, nil); err != nil {
				return err
			}
		}
		s.insert(r)
	}
	return nil
}
