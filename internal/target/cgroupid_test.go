// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// A cgroup is found by its id for as long as it is there; one that gets its name is another.
func TestOpenCgroup(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	path := filepath.Join(testenv.NewCgroup(t).Path, "inner")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	tg, err := ResolveCgroup(path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := OpenCgroup(tg.CgroupID)
	if err != nil {
		t.Fatal(err)
	}
	var opened, named unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &opened), unix.Stat(path, &named), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	if opened.Ino != named.Ino || opened.Dev != named.Dev {
		t.Errorf("opened inode %d of device %d, want %d of %d", opened.Ino, opened.Dev, named.Ino, named.Dev)
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	if fd, err := OpenCgroup(tg.CgroupID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed and made again: %d, %v, want ErrNotExist", fd, err)
	}
}
