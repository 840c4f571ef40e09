// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/policy"
)

// Files are what a Source reads.
type Files interface {
	// Names lists the policy files in their order. fs.ErrNotExist: the place is missing, and counts as empty.
	Names() ([]string, error)
	// Read gives the content of one, and a revision that changes with it. fs.ErrNotExist: it was removed meanwhile.
	Read(name string) (data []byte, revision string, err error)
}

// Options of a Source, and of a Folder. Dir or Files is required.
type Options struct {
	Dir     string
	Files   Files          // that lie elsewhere, in place of Dir
	Default *policy.Policy // for an attachment that no file matches; nil: block-all
	// What the daemon takes: a file that goes beyond is broken. Zero: no limit of bytes, policy's of rules.
	MaxCommandBytes int
	Limits          policy.Limits
	Guard           *policy.Guard
	// ProxyNeeds is what dns.mode proxy would take, which is refused; empty: what a daemon would take.
	ProxyNeeds string
	// Changed is called after files have changed, with what changed about them. Decisions may be others now.
	Changed func([]Change)
	Log     *slog.Logger // nil: slog.Default
}

// Change is one of a file.
type Change struct {
	Name     string
	Old, New string // revisions; empty: there is no such file
	Err      error  // what is wrong with it now
}

// Source decides by policy files. Its methods may be called from any goroutine, Load from one at a time.
type Source struct {
	opts     Options
	log      *slog.Logger
	fallback decision // the default policy

	mu       sync.Mutex
	snapshot *snapshot // replaced, never edited
}

// NewSource makes a source that has not read anything yet, so that it is not Ready.
func NewSource(opts Options) (*Source, error) {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.ProxyNeeds == "" {
		opts.ProxyNeeds = "a remote control plane (control_plane.url: host:port)"
	}
	if opts.Files == nil {
		dir, err := filepath.Abs(opts.Dir)
		if err != nil {
			return nil, fmt.Errorf("policy folder %s: %w", opts.Dir, err)
		}
		opts.Dir, opts.Files, opts.Log = dir, directory(dir), opts.Log.With("folder", dir)
	}
	if opts.Default == nil {
		opts.Default = policy.BlockAll()
	}
	unread := errors.New("policies: not read yet")
	s := &Source{
		opts: opts, log: opts.Log,
		snapshot: &snapshot{unread: true, errs: []error{unread}, blocked: []error{unread}},
	}
	var err error
	if s.fallback, err = newDecision("default_policy", opts.Default, &opts); err != nil {
		return nil, fmt.Errorf("default_policy: %w", err)
	}
	return s, nil
}

// Policy decides for an attachment, as controlplane.Options.Policy. What is in force of one that was not decided here, or
// not yet, may be the decision of a file that is broken since: then it is left alone, as is one that has no policy at all.
func (s *Source) Policy(_ context.Context, a controlplane.Attachment) (*policy.Policy, error) {
	now := s.current()
	decided := s.decide(now, a.Metadata)
	if len(now.blocked) > 0 && !a.Decided && (a.Pending || a.Revision != decided.revision) {
		return nil, nil
	}
	return decided.policy, nil
}

// Ready tells why no new attachment can be given a policy: the files that are broken since they were first read.
func (s *Source) Ready() error { return errors.Join(s.current().blocked...) }

// Errors are what is wrong with the files now, each with its file's name.
func (s *Source) Errors() []error { return s.current().errs }

// Decides names the file that decides for an attachment with this metadata: "default_policy" if none does.
func (s *Source) Decides(metadata map[string]string) string {
	return s.decide(s.current(), metadata).source
}

// Entry is one file as it is known.
type Entry struct {
	Name     string
	Revision string
	File     *policy.File // the last good state; nil: it has none, or holds only sets
	Err      error        // what is wrong with it as it is
}

// Entries lists the files by name.
func (s *Source) Entries() []Entry {
	now := s.current()
	var list []Entry
	for _, name := range slices.Sorted(maps.Keys(now.entries)) {
		e := now.entries[name]
		listed := Entry{Name: name, Revision: e.revision, Err: e.err}
		if e.good != nil {
			listed.File = e.good.file
		}
		list = append(list, listed)
	}
	return list
}

// Check tells what would be wrong if a file had this content; nil: if it did not exist. A sets file breaks others, too.
func (s *Source) Check(name string, data []byte) error {
	now := s.current()
	opts := s.opts
	opts.Files = &draft{Files: opts.Files, name: name, data: data}
	next := read(&opts, now)
	var broken []error
	if next.err != nil {
		broken = append(broken, next.err)
	}
	for _, other := range slices.Sorted(maps.Keys(next.entries)) {
		if err := next.entries[other].err; err != nil && (other == name || now.entries[other].err == nil) {
			broken = append(broken, err)
		}
	}
	return errors.Join(broken...)
}

// draft are files with another content of one.
type draft struct {
	Files
	name string
	data []byte
}

func (d *draft) Names() ([]string, error) {
	names, err := d.Files.Names()
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == d.name })
	if d.data != nil {
		names = append(names, d.name)
		slices.Sort(names)
	}
	return names, nil
}

func (d *draft) Read(name string) ([]byte, string, error) {
	if name == d.name {
		return d.data, "draft", nil
	}
	return d.Files.Read(name)
}

func (s *Source) current() *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot
}

// decide gives the policy for an attachment with this metadata.
func (s *Source) decide(by *snapshot, metadata map[string]string) decision {
	if g := by.decide(metadata); g != nil {
		return g.decision
	}
	return s.fallback
}

// Load reads the files and tells what became right or wrong since the last time.
func (s *Source) Load() {
	old := s.current()
	next := read(&s.opts, old)
	if next == old {
		return
	}
	s.mu.Lock()
	s.snapshot = next
	s.mu.Unlock()
	if s.opts.Changed != nil {
		s.opts.Changed(next.since(old))
	}

	for _, err := range next.errs {
		switch {
		case slices.ContainsFunc(old.errs, func(known error) bool { return known.Error() == err.Error() }):
		case slices.Contains(next.blocked, err):
			s.log.Error("policy broken from the start; new attachments are refused until it is mended or removed", "err", err)
		default:
			s.log.Error("policy broken; its last good state, if it had one, is kept", "err", err)
		}
	}
	for _, g := range next.deciding {
		if !slices.Contains(old.deciding, g) {
			for _, warning := range g.file.Warnings {
				s.log.Warn("policy", "file", g.file.Name, "warning", warning)
			}
		}
	}
	if next.missing && !old.missing {
		s.log.Warn("policy folder does not exist; it counts as empty")
	}
	if len(next.errs) == 0 && len(old.errs) > 0 {
		s.log.Info("policies are in order", "files", len(next.deciding))
	}
}

// Watch reads the folder of Options.Dir whenever it may have changed, until ctx is done.
func (s *Source) Watch(ctx context.Context) {
	hints := make(chan struct{}, 1)
	load := s.Load
	notifier, err := newNotifier(s.opts.Dir)
	if err != nil {
		// inotify instances are a limit of the machine (fs.inotify.max_user_instances).
		s.log.Warn("policy folder is not watched, only read periodically", "every", rescan, "err", err)
	} else {
		load = func() {
			if err := notifier.arm(); err != nil {
				s.log.Warn("policy folder is not watched, only read periodically", "every", rescan, "err", err)
			}
			s.Load()
		}
		var running sync.WaitGroup
		defer running.Wait()
		running.Go(func() { notifier.run(ctx, hints, func(err error) { s.log.Warn("policy folder watch", "err", err) }) })
		defer func() {
			if err := notifier.close(); err != nil {
				s.log.Warn("policy folder watch", "err", err)
			}
		}()
	}
	load()
	reload(ctx, hints, load)
}
