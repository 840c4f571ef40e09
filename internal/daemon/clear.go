// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/run"
)

// stateFile is below run_dir.
const stateFile = "state.db"

// Clear ends every attachment in place of a daemon, which must not run: it takes the daemon's lock. The state goes
// last, so that after a failure the next daemon or the next Clear still knows what there is.
func Clear(c *config.Config) (err error) {
	if err := checkPrivileges(); err != nil {
		return fmt.Errorf("detach all: %w", err)
	}
	held, err := lock(c.RunDir)
	if err != nil {
		return fmt.Errorf("detach all: %w", err)
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	// Runs that go on keep theirs.
	if err := run.Sweep(c.RunDir); err != nil {
		return fmt.Errorf("detach all: %w", err)
	}
	if err := datapath.RemoveAll(c.BPFDir); err != nil {
		return fmt.Errorf("detach all: %w", err)
	}
	if err := intercept.Remove(); err != nil {
		return fmt.Errorf("detach all: %w", err)
	}
	path := filepath.Join(c.RunDir, stateFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("detach all: %s: %w", path, cause(err))
	}
	return nil
}
