// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const systemBPFFS = "/sys/fs/bpf"

// EnsureBPFFS mounts the system's bpffs when dir is to live there and it is
// missing. It fails when the bpffs is this mount namespace's own: it would end
// with the daemon, and every filter with it.
func EnsureBPFFS(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("bpf_dir %s: not an absolute path", dir)
	}
	err := onBPFFS(dir)
	if err == nil {
		return sharedWithInit(dir)
	}
	if !within(dir, systemBPFFS) {
		return err
	}
	if same, known := initMountNamespace(); !same || !known {
		return fmt.Errorf("bpf_dir %s: no bpffs is mounted, and one mounted here could end with the daemon (on the host: mount -t bpf bpf %s)", dir, systemBPFFS)
	}
	if err := unix.Mount("bpf", systemBPFFS, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", systemBPFFS, err)
	}
	return nil
}

// initMountNamespace tells whether this process shares process 1's mount
// namespace, and whether that can be known at all: looking at process 1 takes
// CAP_SYS_PTRACE.
func initMountNamespace() (same, known bool) {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, false
	}
	inits, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		// The initial one has a fixed number since Linux 6.18 (MNT_NS_INIT_INO, include/uapi/linux/nsfs.h).
		return ours == "mnt:[4026531832]", ours == "mnt:[4026531832]"
	}
	return ours == inits, true
}

func within(path, parent string) bool {
	rel, err := filepath.Rel(parent, path)
	return err == nil && filepath.IsLocal(rel)
}

// onBPFFS checks the closest existing directory: dir itself may be yet to make.
func onBPFFS(dir string) error {
	at, err := closest(dir)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return fmt.Errorf("bpf_dir %s: %w", dir, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("bpf_dir %s: not on a bpffs (mount one: mount -t bpf bpf %s)", dir, at)
	}
	return nil
}

func closest(dir string) (string, error) {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		_, err := os.Stat(at)
		if err == nil {
			return at, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || at == "/" {
			return "", fmt.Errorf("bpf_dir %s: %w", dir, err)
		}
	}
}

// sharedWithInit compares the directory with what process 1 sees at its path.
// Where it may not look, it trusts the bpffs that somebody has mounted.
func sharedWithInit(dir string) error {
	if same, known := initMountNamespace(); same || !known {
		return nil
	}
	at, err := closest(dir)
	if err != nil {
		return err
	}
	var ours, inits unix.Stat_t
	if err := unix.Stat(at, &ours); err != nil {
		return fmt.Errorf("bpf_dir %s: %w", dir, err)
	}
	err = unix.Stat(filepath.Join("/proc/1/root", at), &inits)
	if err != nil || ours.Dev != inits.Dev || ours.Ino != inits.Ino {
		return fmt.Errorf("bpf_dir %s: its bpffs belongs to a private mount namespace and would end with the daemon (use the host's: in a unit, no PrivateMounts or ProtectKernelTunables; in a container, bind-mount %s shared)", dir, systemBPFFS)
	}
	return nil
}
