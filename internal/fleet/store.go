// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"fmt"

	"github.com/netfence/netfence/internal/folder"
)

// store is where policies lie. Errors of its methods that are fs.ErrNotExist say that there is no such policy.
type store interface {
	// run keeps the source up to date until ctx is done.
	run(ctx context.Context, source *folder.Source)
	// err tells why what is known may be out of date; nil: it is not.
	err() error
	// fetch reads a policy as it is now.
	fetch(ctx context.Context, name string) (data []byte, revision string, err error)
	// put writes a policy, delete removes it, when what is there is as expected. They return the revision before, and put
	// the one after. A conflictError changed nothing; after any other error nobody knows.
	put(ctx context.Context, name string, data []byte, expected condition) (old, revision string, err error)
	delete(ctx context.Context, name string, expected condition) (old string, err error)
}

// condition is what a change expects to find.
type condition struct {
	absent   bool
	revision string // empty: whatever there is, as long as there is something
}

// conflictError says what was found in place of what was expected.
type conflictError struct{ revision string } // empty: nothing

func (e *conflictError) Error() string {
	if e.revision == "" {
		return "there is no such policy"
	}
	return fmt.Sprintf("the policy is at revision %s", e.revision)
}

// errReadOnly is that of a folder: whoever may write there does so.
var errReadOnly = errors.New("policies are files of a folder: change them there")

// dir is a folder on this machine.
type dir struct{ files folder.Files }

func (d *dir) run(ctx context.Context, source *folder.Source) { source.Watch(ctx) }

func (d *dir) err() error { return nil }

func (d *dir) fetch(_ context.Context, name string) ([]byte, string, error) {
	return d.files.Read(name)
}

func (d *dir) put(context.Context, string, []byte, condition) (old, revision string, err error) {
	return "", "", errReadOnly
}

func (d *dir) delete(context.Context, string, condition) (string, error) { return "", errReadOnly }
