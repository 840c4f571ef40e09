// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// rotation is how old what was read of files may be before they are looked at again.
const rotation = time.Second

// files are read again when they were rotated, all together. While they cannot be used, the last good state is.
type files[T any] struct {
	paths []string
	parse func(contents [][]byte) (T, error)
	log   *slog.Logger

	mu      sync.Mutex
	value   T
	stamps  []fs.FileInfo
	looked  time.Time
	problem string
}

// open reads the files for the first time.
func open[T any](log *slog.Logger, parse func([][]byte) (T, error), paths ...string) (*files[T], error) {
	f := &files[T]{paths: paths, parse: parse, log: log}
	stamps, err := f.stat()
	if err == nil {
		err = f.read(stamps)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// get is what the files say.
func (f *files[T]) get() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) < rotation {
		return f.value
	}
	f.looked = time.Now()
	stamps, err := f.stat()
	if err == nil && !slices.EqualFunc(stamps, f.stamps, same) {
		err = f.read(stamps)
	}
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if problem != f.problem && problem != "" {
		f.log.Error("the last good state is used", "err", problem)
	}
	f.problem = problem
	return f.value
}

func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func (f *files[T]) stat() ([]fs.FileInfo, error) {
	stamps := make([]fs.FileInfo, len(f.paths))
	for i, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, plain(err))
		}
		stamps[i] = info
	}
	return stamps, nil
}

// read takes the files over when they are in order.
func (f *files[T]) read(stamps []fs.FileInfo) error {
	contents := make([][]byte, len(f.paths))
	for i, path := range f.paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, plain(err))
		}
		contents[i] = data
	}
	value, err := f.parse(contents)
	if err != nil {
		return err
	}
	f.value, f.stamps = value, stamps
	return nil
}

// plain drops what the standard library says of operation and path.
func plain(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
