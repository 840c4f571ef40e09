// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/netfence/netfence/internal/policyfile"
	"github.com/netfence/netfence/policy"
)

// reader makes one snapshot from the files and the snapshot before.
type reader struct {
	files   Files
	old     *snapshot
	entries map[string]entry
	changed bool
}

// read makes the snapshot that follows old; old itself when nothing changed.
func read(opts *Options, old *snapshot) *snapshot {
	names, err := opts.Files.Names()
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return old.unreadable(err)
	}
	r := reader{files: opts.Files, old: old, entries: make(map[string]entry)}
	r.changed = missing != old.missing || old.err != nil || old.unread

	shared, sum := make(policy.Sets), sha256.New()
	for _, name := range policyfile.SetsNames {
		if !slices.Contains(names, name) {
			continue
		}
		r.read(name, nil, func(data []byte) (*good, error) {
			sets, err := policy.ParseSets(name, data)
			return &good{sets: sets}, err
		})
		if e := r.entries[name]; e.good != nil {
			maps.Copy(shared, e.good.sets)
			sum.Write(e.sum[:])
		}
	}
	used := sum.Sum(nil)
	for _, name := range names {
		if slices.Contains(policyfile.SetsNames, name) {
			continue
		}
		r.read(name, used, func(data []byte) (*good, error) {
			file, err := shared.ParseFile(name, data)
			if err != nil {
				return nil, err
			}
			decided, err := newDecision(name, file.Policy, opts)
			if err != nil {
				return nil, fmt.Errorf("policy %s: %w", name, err)
			}
			return &good{file: file, decision: decided}, nil
		})
	}
	if !r.changed && len(r.entries) == len(old.entries) {
		return old
	}
	return newSnapshot(r.entries, missing)
}

// read takes one file over from the old snapshot when its content, and the sets that it may use, are the
// same, and parses it otherwise.
func (r *reader) read(name string, sets []byte, parse func([]byte) (*good, error)) {
	data, revision, err := r.files.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return // removed since the files were listed
	}
	old, known := r.old.entries[name]
	e := entry{good: old.good, revision: revision}
	if err != nil {
		e.err = fmt.Errorf("policy %s: %w", name, err)
	} else {
		e.sum = sha256.Sum256(slices.Concat(sets, data))
		if known && e.sum == old.sum {
			r.changed = r.changed || revision != old.revision
			old.revision = revision
			r.entries[name] = old
			return
		}
		var parsed *good
		if parsed, e.err = parse(data); e.err == nil {
			e.good = parsed
		}
	}
	// An entry that was broken from the start and still is stays so; one that is broken when the
	// folder is read for the first time becomes so.
	e.initial = e.err != nil && e.good == nil && (old.initial || r.old.unread)
	r.changed = r.changed || !known || err == nil || old.err == nil || old.err.Error() != e.err.Error()
	r.entries[name] = e
}

// Directory gives the files of a folder on this machine.
func Directory(path string) Files { return directory(path) }

type directory string

// Names lists *.yaml and *.yml, without hidden files: those are editors' and kubelet's.
func (d directory) Names() ([]string, error) {
	listed, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fmt.Errorf("policy folder: %w", err)
	}
	var names []string
	for _, entry := range listed {
		if IsName(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// IsName tells whether a file of this name is a policy file.
func IsName(name string) bool {
	ext := filepath.Ext(name)
	return (ext == ".yaml" || ext == ".yml") && !strings.HasPrefix(name, ".")
}

// Read gives a hash of the content as the revision.
func (d directory) Read(name string) ([]byte, string, error) {
	path := filepath.Join(string(d), name)
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, lost := os.Lstat(path); lost == nil {
			return nil, "", fmt.Errorf("is a link that leads nowhere: %v", err)
		}
	}
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(data)
	return data, "sha256:" + hex.EncodeToString(sum[:16]), nil
}

// readFile reads what policy.MaxFile permits and one byte more, which the parser then refuses.
func readFile(path string) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO would otherwise wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	return io.ReadAll(io.LimitReader(f, policy.MaxFile+1))
}
