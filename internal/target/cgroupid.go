// SPDX-License-Identifier: Apache-2.0

package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// kernfsHandle is FILEID_KERNFS (enum fid_type, Linux 5.5): the file handle of
// a cgroup is its id.
const kernfsHandle = 0xfe

// hierarchy is the root of cgroup v2, once somebody has needed it. There is one on a
// host, wherever it is mounted.
var hierarchy struct {
	mu   sync.Mutex
	root *os.File
}

func hierarchyRoot() (*os.File, error) {
	hierarchy.mu.Lock()
	defer hierarchy.mu.Unlock()
	if hierarchy.root != nil {
		return hierarchy.root, nil
	}
	m, err := cgroup2Mount()
	if err != nil {
		return nil, err
	}
	hierarchy.root, err = os.Open(m.point)
	return hierarchy.root, err
}

// OpenCgroup opens the cgroup that has that id, whatever leads to it. The caller closes
// the file descriptor, which bpf(2) takes, and nothing that reads. The error is
// fs.ErrNotExist if there is none any more.
func OpenCgroup(id uint64) (fd int, err error) {
	root, err := hierarchyRoot()
	if err != nil {
		return -1, fmt.Errorf("cgroup %d: %w", id, err)
	}
	handle := unix.NewFileHandle(kernfsHandle, binary.NativeEndian.AppendUint64(nil, id))
	fd, err = unix.OpenByHandleAt(int(root.Fd()), handle, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	switch {
	case errors.Is(err, unix.ESTALE):
		return -1, fmt.Errorf("cgroup %d: %w", id, fs.ErrNotExist)
	case errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("cgroup %d: open_by_handle_at: %w (needs CAP_DAC_READ_SEARCH)", id, err)
	case err != nil:
		return -1, fmt.Errorf("cgroup %d: open_by_handle_at: %w", id, err)
	}
	return fd, nil
}
