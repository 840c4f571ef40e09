// SPDX-License-Identifier: Apache-2.0

// Package policyfile reads one file of a policy folder, for commands that are given its name.
package policyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// SetsNames are the files whose sets the others of a folder may use.
var SetsNames = []string{"sets.yaml", "sets.yml"}

// Read reads a policy file with the sets beside it, and judges what the daemon would judge.
func Read(path string) (*policy.File, error) {
	if slices.Contains(SetsNames, filepath.Base(path)) {
		return nil, fmt.Errorf("policy %s: holds sets, which other files use, and no policy", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", path, pathCause(err))
	}
	sets, err := setsBeside(path)
	if err != nil {
		return nil, err
	}
	file, err := sets.ParseFile(path, data)
	if err != nil {
		return nil, err
	}
	if err := usable(file.Policy); err != nil {
		return nil, fmt.Errorf("policy %s: %w", path, err)
	}
	return file, nil
}

// ReadSets reads a file that holds sets.
func ReadSets(path string) (policy.Sets, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("sets %s: %w", path, pathCause(err))
	}
	return policy.ParseSets(path, data)
}

// setsBeside reads the sets that a file shares with its folder.
func setsBeside(path string) (policy.Sets, error) {
	all := policy.Sets{}
	for _, name := range SetsNames {
		beside := filepath.Join(filepath.Dir(path), name)
		sets, err := ReadSets(beside)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for name, rules := range sets {
			if _, ok := all[name]; ok {
				return nil, fmt.Errorf("sets %s: %s is in %s too", beside, name, SetsNames[0])
			}
			all[name] = rules
		}
	}
	return all, nil
}

// usable judges what the daemon would judge before it sends the policy to itself.
func usable(p *policy.Policy) error {
	if err := p.Validate(policy.Limits{}); err != nil {
		return err
	}
	if _, err := p.Compile(); err != nil {
		return err
	}
	_, err := wire.BulkUpdate(p, wire.Self())
	var unsupported *wire.UnsupportedError
	if errors.As(err, &unsupported) {
		return fmt.Errorf("%s: not supported yet (leave it out)", unsupported.Field)
	}
	return err
}

// pathCause drops what the standard library says of operation and path.
func pathCause(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}
