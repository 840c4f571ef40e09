// SPDX-License-Identifier: Apache-2.0

package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/confine"
)

// reportFile is written with the rights of who wants it: as root, a symbolic link would choose what is overwritten.
type reportFile struct {
	path string
	as   confine.User
}

// checkReport finds before the command begins that nothing could be written. Nil: there is no report.
func checkReport(path string, as confine.User) (*reportFile, error) {
	if path == "" {
		return nil, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	err = confine.As(as, func() error {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return unix.EISDIR
		}
		return unix.Faccessat2(unix.AT_FDCWD, filepath.Dir(path), unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	})
	if err != nil {
		return nil, fmt.Errorf("report %s: %w", path, cause(err))
	}
	return &reportFile{path, as}, nil
}

// write replaces the file as one step.
func (f *reportFile) write(r Result) error {
	if f == nil {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = confine.As(f.as, func() error { return replaceFile(f.path, append(text, '\n')) })
	}
	if err != nil {
		return fmt.Errorf("report %s: %w", f.path, cause(err))
	}
	return nil
}

func replaceFile(path string, text []byte) error {
	draft, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = draft.Write(text)
	// As if it had been created by a redirection.
	if err = errors.Join(err, draft.Chmod(0o666&^os.FileMode(umask())), draft.Close()); err == nil {
		err = os.Rename(draft.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(draft.Name()))
	}
	return nil
}

// umask can only be read by setting it; nothing else creates files at this point.
func umask() int {
	mask := unix.Umask(0o077)
	unix.Umask(mask)
	return mask
}
