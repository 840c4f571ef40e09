// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// snapshot are the files as they were read. It is immutable.
type snapshot struct {
	entries map[string]entry // by file name
	err     error            // the place itself cannot be read
	unread  bool             // nor could it ever since it was opened
	missing bool             // it does not exist, and counts as empty

	// What follows from those.
	deciding []*good // policy files: highest priority first, then by name
	errs     []error // what is wrong, each naming its file
	blocked  []error // those of errs without which no new attachment can be decided
}

// entry is one file by name.
type entry struct {
	sum      [sha256.Size]byte // of its content, and of the sets that it may use
	revision string            // of its content, as Files tells it; empty: it could not be read
	good     *good             // the last good state; nil: it never was in order
	err      error             // what is wrong with the content as it is
	// initial: broken since the folder was first read, so that nobody knows what it would decide.
	initial bool
}

// good is what a file says while it is in order: a policy file decides, a sets file is used by others.
type good struct {
	file     *policy.File
	decision decision
	sets     policy.Sets
}

func newSnapshot(entries map[string]entry, missing bool) *snapshot {
	s := &snapshot{entries: entries, missing: missing}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		e := entries[name]
		if e.err != nil {
			s.errs = append(s.errs, e.err)
			if e.initial {
				s.blocked = append(s.blocked, e.err)
			}
		}
		if e.good != nil && e.good.file != nil {
			s.deciding = append(s.deciding, e.good)
		}
	}
	slices.SortStableFunc(s.deciding, func(a, b *good) int { return cmp.Compare(b.file.Priority, a.file.Priority) })
	return s
}

// since lists what differs from an older snapshot.
func (s *snapshot) since(old *snapshot) []Change {
	var changes []Change
	for name, e := range s.entries {
		if was := old.entries[name]; was.revision != e.revision {
			changes = append(changes, Change{Name: name, Old: was.revision, New: e.revision, Err: e.err})
		}
	}
	for name, was := range old.entries {
		if _, ok := s.entries[name]; !ok {
			changes = append(changes, Change{Name: name, Old: was.revision})
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return cmp.Compare(a.Name, b.Name) })
	return changes
}

// unreadable keeps what the last reading of the folder found.
func (s *snapshot) unreadable(err error) *snapshot {
	if s.err != nil && s.err.Error() == err.Error() {
		return s
	}
	next := newSnapshot(s.entries, s.missing)
	next.err, next.unread = err, s.unread
	next.errs = append([]error{err}, next.errs...)
	if next.unread {
		next.blocked = append([]error{err}, next.blocked...)
	}
	return next
}

// decide finds the file for an attachment with this metadata; nil: none matches.
func (s *snapshot) decide(metadata map[string]string) *good {
	for _, g := range s.deciding {
		if g.file.Matches(metadata) {
			return g
		}
	}
	return nil
}

// decision is a policy as it is handed on.
type decision struct {
	source   string // file name
	policy   *policy.Policy
	revision string // equal content, equal revision: over restarts too
}

// newDecision makes sure that the daemon will take the policy: a refusal there would come too late to
// keep the last good state.
func newDecision(source string, p *policy.Policy, opts *Options) (decision, error) {
	if p.DNS.Mode == policy.DNSProxy {
		return decision{}, errors.New("dns.mode proxy needs " + opts.ProxyNeeds)
	}
	if err := p.Validate(opts.Limits); err != nil {
		return decision{}, err
	}
	if _, err := p.CompileWith(opts.Guard); err != nil {
		return decision{}, err
	}
	update, err := wire.BulkUpdate(p, wire.Self())
	var unsupported *wire.UnsupportedError
	if errors.As(err, &unsupported) {
		return decision{}, fmt.Errorf("%s: not supported yet (leave it out)", unsupported.Field)
	}
	if err != nil {
		return decision{}, err
	}
	if size, limit := proto.Size(update), opts.MaxCommandBytes; limit > 0 && size+commandOverhead > limit {
		return decision{}, fmt.Errorf("takes %d bytes as a command, at most %d: fewer rules, or shorter ones", size, limit)
	}
	revision, err := controlplane.Revision(p)
	if err != nil {
		return decision{}, err
	}
	return decision{source: source, policy: p, revision: revision}, nil
}

// commandOverhead is room for the id, the number and the revision around a policy.
const commandOverhead = 1024
