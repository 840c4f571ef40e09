// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long the folder must be quiet before it is read: an editor writes a file in
	// several steps, a package many files. hold bounds the wait while it is never quiet.
	settle = 100 * time.Millisecond
	hold   = 2 * time.Second
	// rescan finds what inotify does not tell: lost events, network file systems, the targets of links.
	rescan = 30 * time.Second
)

// reload calls load when the folder may have changed, until ctx is done. Each value of changes is
// one hint; none is needed, the folder is read every rescan anyway.
func reload(ctx context.Context, changes <-chan struct{}, load func()) {
	periodic := time.NewTicker(rescan)
	defer periodic.Stop()
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	quiet.Stop()
	var latest time.Time // by when to read; zero: nothing is waiting
	for {
		select {
		case <-changes:
			now := time.Now()
			if latest.IsZero() {
				latest = now.Add(hold)
			}
			quiet.Reset(min(settle, latest.Sub(now)))
			continue
		case <-quiet.C:
		case <-periodic.C:
		case <-ctx.Done():
			return
		}
		latest = time.Time{}
		quiet.Stop()
		load()
	}
}

// notifier hints at changes of a folder that may be replaced, be a link, or not be there (yet).
type notifier struct {
	dir     string
	inotify *fsnotify.Watcher
}

func newNotifier(dir string) (*notifier, error) {
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	return &notifier{dir: dir, inotify: inotify}, nil
}

// arm watches the folder as it is now, and the nearest directory above it that exists, where it would
// be replaced or made. Called before each read, so that no change falls between the two.
func (n *notifier) arm() error {
	// The watch of a directory that was moved away or deleted is not ours any more: always begin anew.
	for _, watched := range n.inotify.WatchList() {
		if err := n.inotify.Remove(watched); err != nil && !errors.Is(err, fsnotify.ErrNonExistentWatch) {
			return err
		}
	}
	if err := n.inotify.Add(n.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for dir := filepath.Dir(n.dir); ; dir = filepath.Dir(dir) {
		err := n.inotify.Add(dir)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return err
		}
	}
}

// run passes hints on until ctx is done, and reports what goes wrong. A hint that finds another one
// waiting says nothing new.
func (n *notifier) run(ctx context.Context, hints chan<- struct{}, report func(error)) {
	hint := func() {
		select {
		case hints <- struct{}{}:
		default:
		}
	}
	for {
		select {
		case event := <-n.inotify.Events:
			if n.concerns(event.Name) {
				hint()
			}
		case err := <-n.inotify.Errors:
			// An overflow means lost events: read. Anything else is told as well.
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				report(err)
			}
			hint()
		case <-ctx.Done():
			return
		}
	}
}

// concerns tells whether path is in the folder, the folder, or on the way to it.
func (n *notifier) concerns(path string) bool {
	path = filepath.Clean(path)
	within := func(path, dir string) bool {
		return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, string(os.PathSeparator))+string(os.PathSeparator))
	}
	return within(path, n.dir) || within(n.dir, path)
}

func (n *notifier) close() error { return n.inotify.Close() }
