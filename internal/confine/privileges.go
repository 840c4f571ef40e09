// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rootKeeps are the capabilities of a command that runs as uid 0: what a package manager or a build needs for files
// and users. Nothing of the network but low ports, nothing of devices, tracing, the kernel.
var rootKeeps = mask(
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETFCAP,
	unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL,
	unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_AUDIT_WRITE,
)

// switchNeeds are those that the change to another user takes, and ends, and the one that keepOnlyKill leaves.
var switchNeeds = mask(unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL)

func mask(caps ...uint) (m uint64) {
	for _, c := range caps {
		m |= 1 << c
	}
	return m
}

// dropPrivileges takes from the calling thread, and from what it starts, all that user shall not have.
func dropPrivileges(user User) error {
	bounding, thread := uint64(0), switchNeeds
	if user.UID == 0 {
		bounding, thread = rootKeeps, rootKeeps
	}
	if err := dropBounding(bounding); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := scope(); err != nil {
		return err
	}
	if err := filterSystemCalls(); err != nil {
		return err
	}
	header, data := capData(thread)
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

// dropBounding leaves keep in the bounding set. The kernel's last capability is the first that it does not know.
func dropBounding(keep uint64) error {
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_CHECKPOINT_RESTORE {
			return nil
		}
		if err != nil {
			return fmt.Errorf("bounding capability %d: %w", c, err)
		}
	}
	return nil
}

// capData is for permitted and effective; inheritable stays empty.
func capData(caps uint64) (unix.CapUserHeader, [2]unix.CapUserData) {
	low, high := uint32(caps), uint32(caps>>32)
	return unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{
		{Effective: low, Permitted: low}, {Effective: high, Permitted: high},
	}
}

// keepOnlyKill leaves every thread of this process the one capability that passing signals on takes.
func keepOnlyKill() error {
	header, data := capData(mask(unix.CAP_KILL))
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0)
	runtime.KeepAlive(&data)
	// With cgo, Go does not know all threads. The command cannot reach them either way; see closeDoors.
	if errno != 0 && errno != unix.ENOTSUP {
		return fmt.Errorf("capabilities: %w", errno)
	}
	return nil
}

// Since Linux 6.12 (Landlock ABI 6).
const landlockScopes = 6

// scope keeps the command from abstract unix sockets and from signalling processes outside, where the kernel can. The
// first have no file to hide; the second are in other PID namespaces, but may be in the command's process group.
func scope() error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || version < landlockScopes {
		return nil // docs/run.md says what stays open
	}
	attr := unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL}
	// Up to and with Scoped: what came later is of later ABIs.
	size := unsafe.Offsetof(attr.Scoped) + unsafe.Sizeof(attr.Scoped)
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("landlock: %w", errno)
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("landlock: %w", errno)
	}
	return nil
}
