// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// families are the kinds of sockets that a command may have. The filter of a cgroup sees what is sent by IP; others
// leave by other ways (vsock to the hypervisor), or have the kernel's own threads send for them (RDS, TIPC).
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// absent are system calls that a kernel may be built without, so that programs do without them.
var absent = []uint32{
	// Opens sockets that no filter of system calls sees (IORING_OP_SOCKET).
	unix.SYS_IO_URING_SETUP,
	// Key types that ask a program of the host for their payload send its question for it (dns_resolver).
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	// SO_PEERPIDFD names the process at the other end of a socket pair, also one outside that gave its end as standard
	// input. Only Landlock, from Linux 6.12, keeps the same user from taking that one's files.
	unix.SYS_PIDFD_GETFD,
}

// forbiddenIoctls type on the terminal for others to read: for the shell that runs when the command has ended.
var forbiddenIoctls = []uint32{unix.TIOCSTI, 0x541c /* TIOCLINUX: paste */}

var auditArch = map[string]uint32{
	"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64, "loong64": unix.AUDIT_ARCH_LOONGARCH64,
	"ppc64le": unix.AUDIT_ARCH_PPC64LE, "riscv64": unix.AUDIT_ARCH_RISCV64, "s390x": unix.AUDIT_ARCH_S390X,
}

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// x32Bit marks the calls of the x32 ABI (asm/unistd.h), which have amd64's audit architecture.
const x32Bit = 0x40000000

// seccompProgram is the filter. System calls of another architecture's numbering end the process: they cannot be
// judged by these numbers, nor their arguments be seen (socketcall).
func seccompProgram() ([]bpf.RawInstruction, error) {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("seccomp: architecture %s is not known", runtime.GOARCH)
	}
	ret := func(action uint32) bpf.Instruction { return bpf.RetConstant{Val: action} }
	load := func(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: off, Size: 4} }
	refuse := func(errno unix.Errno) bpf.Instruction { return ret(unix.SECCOMP_RET_ERRNO | uint32(errno)) }
	program := []bpf.Instruction{
		load(offArch),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(offNumber),
	}
	if runtime.GOARCH == "amd64" {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32Bit, SkipTrue: 1},
			ret(unix.SECCOMP_RET_KILL_PROCESS))
	}
	for _, number := range absent {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number, SkipTrue: 1},
			refuse(unix.ENOSYS))
	}
	// socket(2): one of the families, or none.
	allowed := []bpf.Instruction{load(lowHalf(0))}
	for _, family := range families {
		allowed = append(allowed,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: family, SkipTrue: 1},
			ret(unix.SECCOMP_RET_ALLOW))
	}
	allowed = append(allowed, refuse(unix.EAFNOSUPPORT))
	for _, number := range []uint32{unix.SYS_SOCKET, unix.SYS_SOCKETPAIR} {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number, SkipTrue: uint8(len(allowed))})
		program = append(program, allowed...)
	}
	refused := []bpf.Instruction{load(lowHalf(1))}
	for _, request := range forbiddenIoctls {
		refused = append(refused,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: request, SkipTrue: 1},
			refuse(unix.EPERM))
	}
	program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_IOCTL, SkipTrue: uint8(len(refused))})
	program = append(program, refused...)
	return bpf.Assemble(append(program, ret(unix.SECCOMP_RET_ALLOW)))
}

// lowHalf is where the 32 bits of an argument are that the kernel looks at for an int.
func lowHalf(arg uint32) uint32 {
	off := offArgs + 8*arg
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		off += 4
	}
	return off
}

// filterSystemCalls is for the calling thread and what it starts. It needs no_new_privs.
func filterSystemCalls() error {
	raw, err := seccompProgram()
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	runtime.KeepAlive(filter)
	return nil
}
