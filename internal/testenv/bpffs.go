// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// BPFFS mounts a bpffs for the test and returns where. Every mount of a bpffs is a
// file system of its own, so that what is pinned there dies with the test. It is
// mounted in the mount namespace of everyone, as the host's is.
func BPFFS(t TB) string {
	t.Helper()
	// bpffs refuses names with dots, the path to it may have them.
	dir := filepath.Join(os.TempDir(), uniqueName())
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatalf("bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := removeBPFFS(dir); err != nil {
			t.Errorf("remove bpffs: %v", err)
		}
	})
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount bpffs %s: %v", dir, err)
	}
	return dir
}

// removeBPFFS unmounts dir, if a bpffs is there, and removes the directory.
func removeBPFFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if uint32(st.Type) == unix.BPF_FS_MAGIC { // signed, with 32 bits, on 386
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
	return os.Remove(dir)
}
