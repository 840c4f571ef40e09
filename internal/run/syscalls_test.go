// SPDX-License-Identifier: Apache-2.0

package run

import (
	"encoding/json"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// calls are system calls that nothing inside gets through with. Each is harmless if it does.
var calls = map[string]func() error{
	"AF_PACKET":  func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) },
	"AF_VSOCK":   func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) },
	"AF_RDS":     func() error { return socket(unix.AF_RDS, unix.SOCK_SEQPACKET, 0) },
	"AF_TIPC":    func() error { return socket(unix.AF_TIPC, unix.SOCK_RDM, 0) },
	"AF_ALG":     func() error { return socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) },
	"AF_XDP":     func() error { return socket(unix.AF_XDP, unix.SOCK_RAW, 0) },
	"raw socket": func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW) },
	"raw v6":     func() error { return socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW) },
	"tipc pair": func() error {
		_, err := unix.Socketpair(unix.AF_TIPC, unix.SOCK_RDM, 0)
		return err
	},
	"io_uring": func() error {
		var params [120]byte
		return number(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params[0])), 0)
	},
	"add_key": func() error {
		_, err := unix.AddKey("user", "netfence-test", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
		return err
	},
	"request_key": func() error {
		_, err := unix.RequestKey("dns_resolver", "example.org", "", unix.KEY_SPEC_PROCESS_KEYRING)
		return err
	},
	"ptrace init": func() error { return unix.PtraceAttach(1) },
	"memory of init": func() error {
		b := make([]byte, 1)
		_, err := unix.ProcessVMReadv(1, []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: 0x400000, Len: 1}}, 0)
		return err
	},
	"file of init": func() error {
		fd, err := unix.PidfdOpen(1, 0)
		if err != nil {
			return err
		}
		_, err = unix.PidfdGetfd(fd, 3, 0)
		return err
	},
	"setns of init": func() error {
		fd, err := unix.PidfdOpen(1, 0)
		if err != nil {
			return err
		}
		return unix.Setns(fd, unix.CLONE_NEWCGROUP)
	},
	"bpf": func() error {
		insns := [2]uint64{0x00000000000000b7, 0x95} // r0 = 0; exit
		license := [4]byte{'G', 'P', 'L'}
		attr := struct {
			kind, count uint32
			insns, lic  uint64
			rest        [100]byte
		}{kind: 8 /* cgroup_skb */, count: 2, insns: uint64(uintptr(unsafe.Pointer(&insns))), lic: uint64(uintptr(unsafe.Pointer(&license)))}
		return number(unix.SYS_BPF, 5, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	},
	"handles": func() error {
		handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/", 0)
		if err != nil {
			return err
		}
		root, err := unix.Open("/", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		_, err = unix.OpenByHandleAt(root, handle, unix.O_RDONLY)
		return err
	},
	"module": func() error { return unix.InitModule([]byte("x"), "") },
	"reboot": func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_ON) },
	"mount":  func() error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") },
	"mount api": func() error {
		_, err := unix.Fsopen("cgroup2", 0)
		return err
	},
	"perf": func() error {
		_, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: unix.PERF_ATTR_SIZE_VER5}, -1, 0, -1, 0)
		return err
	},
	"type for the shell": func() error {
		c := byte('x')
		return number(unix.SYS_IOCTL, 0, unix.TIOCSTI|0xdead<<32, uintptr(unsafe.Pointer(&c)))
	},
	"nice": func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) },
}

func socket(family, kind, proto int) error {
	_, err := unix.Socket(family, kind, proto)
	return err
}

func number(nr, a, b, c uintptr) error {
	_, _, errno := unix.Syscall(nr, a, b, c)
	runtime.KeepAlive(nr)
	if errno != 0 {
		return errno
	}
	return nil
}

var _ = testenv.NewFunc("call-all", func([]string) error {
	results := map[string]string{}
	for name, call := range calls {
		results[name] = "done"
		if err := call(); err != nil {
			results[name] = err.Error()
		}
	}
	return json.NewEncoder(os.Stdout).Encode(results)
})

func TestSystemCalls(t *testing.T) {
	want := map[string]string{}
	for name := range calls {
		want[name] = "operation not permitted"
	}
	for _, name := range []string{"AF_PACKET", "AF_VSOCK", "AF_RDS", "AF_TIPC", "AF_ALG", "AF_XDP", "tipc pair"} {
		want[name] = "address family not supported by protocol"
	}
	for _, name := range []string{"io_uring", "add_key", "request_key", "file of init"} {
		want[name] = "function not implemented"
	}
	want["nice"] = "permission denied"
	want["perf"] = "permission denied"
	for name, uid := range map[string]string{"user": "65534", "root": "0"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			if uid != "0" {
				b.sudo(uid)
			}
			got := b.sh(t, b.call(t, "call-all"))
			var results map[string]string
			if err := json.Unmarshal([]byte(got.stdout), &results); err != nil {
				t.Fatalf("%v\n%+v", err, got)
			}
			for call, outcome := range results {
				if call == "module" && outcome == "function not implemented" {
					continue // a kernel without modules
				}
				if outcome != want[call] {
					t.Errorf("%s: %s, want %s", call, outcome, want[call])
				}
			}
			if len(results) != len(want) {
				t.Errorf("got %q", results)
			}
		})
	}
}

// A system call that the filter cannot judge, having another number there, ends the process.
func TestOtherABI(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		return // has no x32
	}
	b := newBench(t)
	if got := b.sh(t, "exec "+b.call(t, "x32")); got.code != 128+int(unix.SIGSYS) {
		t.Errorf("got %+v", got)
	}
}

var _ = testenv.NewFunc("x32", func([]string) error { return number(unix.SYS_SOCKET|0x40000000, unix.AF_VSOCK, unix.SOCK_STREAM, 0) })
