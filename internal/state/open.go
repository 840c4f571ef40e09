// SPDX-License-Identifier: Apache-2.0

package state

import (
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
		clock:    opts.Clock,
		log:      opts.Log,
		records:  make(map[string]*record),
		byKey:    make(map[string]*record),
		byTarget: make(map[target.Target]*record),
		dirty:    make(map[string]struct{}),
		wake:     make(chan struct{}, 1),
		changed:  make(chan struct{}),
		gone:     make(map[string]grave),
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
	if err := s.setAside(path, bootID); err != nil {
		return nil, err
	}
	f, err := openFile(path, bootID)
	if err != nil {
		return nil, err
	}
	s.file = f
	if err := s.adopt(); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return s, nil
}

// setAside moves the file away if it is another boot's, and otherwise makes sure
// that it can be read, before anything writes to it.
func (s *Store) setAside(path, bootID string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("state file: %w", err)
	case !info.Mode().IsRegular():
		return &CorruptError{path, errors.New("not a regular file")}
	case info.Size() == 0:
		return nil // its maker died before the first write
	}
	found, err := inspect(path, info.Size())
	if err != nil || found == "" || found == bootID {
		return err
	}
	previous := path + ".previous"
	if err := os.Rename(path, previous); err != nil {
		return fmt.Errorf("state file of another boot: %w", err)
	}
	s.log.Info("state of another boot set aside", "path", previous, "boot_id", found)
	return nil
}

// inspect checks the whole file without writing to it, and returns the boot that
// it belongs to; empty: its maker died before it said. bbolt trusts what it maps:
// once it is open for writing, a damaged file can end the process.
func inspect(path string, size int64) (bootID string, err error) {
	// A page that points out of the mapping would be a fatal fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &CorruptError{path, fmt.Errorf("%v", r)}
		}
	}()
	db, err := openBolt(path, true)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > size {
			return fmt.Errorf("%d bytes, %d expected", size, tx.Size())
		}
		var first error
		for err := range tx.Check() { // to its end, which is when its goroutine ends
			if first == nil {
				first = err
			}
		}
		if first != nil {
			return first
		}
		meta := tx.Bucket(metaBucket)
		if meta == nil {
			if name, _ := tx.Cursor().First(); name != nil {
				return errors.New("not a state file")
			}
			return nil
		}
		if found := string(meta.Get(formatKey)); found != format {
			return fmt.Errorf("format %q, this version reads %q", found, format)
		}
		bootID = string(meta.Get(bootIDKey))
		return nil
	})
	if err != nil {
		return "", &CorruptError{path, err}
	}
	return bootID, nil
}

// openFile opens the file for writing and makes what is not there yet.
func openFile(path, bootID string) (*file, error) {
	db, err := openBolt(path, false)
	if err != nil {
		return nil, err
	}
	f := &file{db, path}
	err = db.Update(func(tx *bbolt.Tx) error {
		if tx.Bucket(metaBucket) != nil {
			return nil
		}
		for _, name := range [][]byte{metaBucket, attachmentsBucket, policiesBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(metaBucket)
		return errors.Join(meta.Put(formatKey, []byte(format)), meta.Put(bootIDKey, []byte(bootID)))
	})
	if err != nil {
		return nil, errors.Join(f.fail("write", err), f.close())
	}
	return f, nil
}

func openBolt(path string, readOnly bool) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:  lockTimeout,
		ReadOnly: readOnly,
		// See file.go for why nothing is synced. The list of free pages is
		// then worth rebuilding at a start rather than writing each time.
		NoSync: true, NoGrowSync: true, NoFreelistSync: true,
		FreelistType: bbolt.FreelistMapType,
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
func (s *Store) adopt() error {
	records, err := s.file.load()
	if err != nil {
		return &CorruptError{s.file.path, err}
	}
	for _, r := range records {
		a := &r.attachment
		if has := s.byTarget[identity(a.Target)]; has != nil || a.Key != "" && s.byKey[a.Key] != nil {
			return &CorruptError{s.file.path, fmt.Errorf("attachment %s: its target or key is another's", a.ID)}
		}
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
