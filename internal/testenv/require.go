// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Feature is something that a machine may lack. It is probed by trying.
type Feature struct {
	name  string
	probe func() error
}

// What a test can require.
var (
	Root = Feature{"root", sync.OnceValue(func() error {
		if os.Geteuid() != 0 {
			return errors.New("not root")
		}
		return nil
	})}
	// Cgroup2 is a mounted cgroup v2 hierarchy.
	Cgroup2 = Feature{"cgroup v2", sync.OnceValue(func() error {
		_, err := cgroupRoot()
		return err
	})}
	// TCX is the attachment of programs to devices by link (Linux 6.6).
	TCX = Feature{"tcx", sync.OnceValue(probeTCX)}
	// Interfaces is the attachment of programs to devices, by links or by filters.
	Interfaces = Feature{"tcx or clsact", sync.OnceValue(func() error {
		if TCX.probe() == nil {
			return nil
		}
		return probeClsact()
	})}
	// KernelContext is what programs need to read a packet's device by themselves (Linux 6.2).
	KernelContext = Feature{"bpf_cast_to_kern_ctx", sync.OnceValue(func() error {
		kernel, err := btf.LoadKernelSpec()
		if err != nil {
			return err
		}
		var function *btf.Func
		return kernel.TypeByName("bpf_cast_to_kern_ctx", &function)
	})}
)

// hookEnv is the daemon's own setting interface_hook, in the environment.
const hookEnv = "NETFENCE_INTERFACE_HOOK"

// Clsact is true if the tests are to run with interfaces held by clsact: because the
// environment says so, as to the daemon, or because the kernel has no tcx.
func Clsact() bool { return os.Getenv(hookEnv) == "clsact" || TCX.probe() != nil }

// Program is a command in PATH.
func Program(name string) Feature {
	return Feature{name, func() error {
		_, err := exec.LookPath(name)
		return err
	}}
}

// requireEnv, when set, turns the skip of a test into a failure: for machines that
// are known to have everything.
const requireEnv = "NETFENCE_TEST_REQUIRE"

// Require skips the test if the machine lacks one of the features.
func Require(t TB, all ...Feature) {
	t.Helper()
	for _, f := range all {
		err := f.probe()
		if err == nil {
			continue
		}
		if os.Getenv(requireEnv) != "" {
			t.Fatalf("needs %s: %v", f.name, err)
		}
		t.Skipf("needs %s: %v", f.name, err)
	}
}

func probeTCX() (err error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "nf_probe_tcx", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TCX_NEXT
	})
	if err != nil {
		return fmt.Errorf("load a program: %w", err)
	}
	defer func() { err = errors.Join(err, CloseBPF(prog)) }()
	ns, err := newNS()
	if err != nil {
		return err
	}
	defer ns.file.Close()
	var l link.Link
	ns.Do(func() {
		// lo is always the first device of a namespace.
		l, err = link.AttachTCX(link.TCXOptions{Interface: 1, Program: prog, Attach: ebpf.AttachTCXIngress})
	})
	if err != nil {
		return err
	}
	return CloseBPF(l)
}

func probeClsact() error {
	ns, err := newNS()
	if err != nil {
		return err
	}
	defer ns.file.Close()
	ns.Do(func() {
		err = netlink.QdiscAdd(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: 1, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
			QdiscType:  "clsact",
		})
	})
	return err
}
