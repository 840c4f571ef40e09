// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
)

// ErrNotFound says that there is no such attachment, or that it is on its way out.
var ErrNotFound = errors.New("no such attachment")

// ErrInUse says that another process has the state file open.
var ErrInUse = errors.New("in use by another netfenced (stop it, or give this one a run_dir of its own)")

// TakenError says that a target or a key belongs to another attachment.
type TakenError struct {
	ID, Key string // of the attachment that has it; it may have no key
}

func (e *TakenError) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("taken by attachment %s (detach that one first)", e.ID)
	}
	return fmt.Sprintf("taken by attachment %s with key %s (detach that one first)", e.ID, e.Key)
}

// LimitError says that something is more than the configuration permits.
type LimitError struct {
	Limit  string // the configuration's key: "limits.attachments"
	N, Max int    // what it would have been, and what it may be
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%d, at most %d (%s)", e.N, e.Max, e.Limit)
}

// RefusedError says that the kernel refused a change for good. Nothing changed:
// what was in force still is, and is what is desired again.
type RefusedError struct {
	Revision Revision
	Err      error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("revision %d refused by the kernel: %v", e.Revision, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// CorruptError says that the state file cannot be understood. It was not
// changed, and what the kernel filters stays filtered.
type CorruptError struct {
	Path string
	Err  error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("state file %s: unreadable: %v (what is attached stays filtered; to start over, "+
		"run `netfenced detach --all` and move the file away)", e.Path, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }
