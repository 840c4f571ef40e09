// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestRunHasNoWayOut tries what a program that wants out would: each attempt ends in a connection to where it must not
// go, from wherever it got. An attempt that works must do no harm to the machine that the test runs on.
func TestRunHasNoWayOut(t *testing.T) {
	s := newFenced(t, testenv.Zone{})
	const forbidden = "203.0.113.66"
	out := connect(forbidden) + " && echo OUT"
	outside, err := os.ReadFile("/proc/self/cgroup") // where the test is
	if err != nil {
		t.Fatal(err)
	}
	attempts := map[string]string{
		"plain":                          out,
		"join the root cgroup":           "for d in /sys/fs/cgroup /sys/fs/cgroup/unified; do echo $$ > $d/cgroup.procs; done; " + out,
		"join a cgroup above":            "for d in /sys/fs/cgroup/.. /sys/fs/cgroup/../.. /proc/1/root/sys/fs/cgroup /proc/$PPID/root/sys/fs/cgroup; do echo $$ > $d/cgroup.procs; done; " + out,
		"move a child":                   "sleep 5 & for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do echo $! > $d/cgroup.procs; done; " + out,
		"mount cgroup2":                  "d=$(mktemp -d) && mount -t cgroup2 none $d && echo $$ > $d/cgroup.procs; " + out,
		"mount it in a user namespace":   "unshare -rmC bash -c 'd=$(mktemp -d) && mount -t cgroup2 none $d && echo $$ > $d/cgroup.procs; " + strings.ReplaceAll(out, "'", `'\''`) + "'",
		"remount what is read-only":      "mount -o remount,rw /sys/fs/cgroup; echo $$ > /sys/fs/cgroup/cgroup.procs; " + out,
		"enter the namespaces of init":   "nsenter -t 1 -m -C -n -- bash -c '" + strings.ReplaceAll(out, "'", `'\''`) + "'",
		"enter those of the parent":      "nsenter -t $PPID -a -- bash -c '" + strings.ReplaceAll(out, "'", `'\''`) + "'",
		"a network namespace of its own": "unshare -rn bash -c '" + strings.ReplaceAll(out, "'", `'\''`) + "'; unshare -n bash -c '" + strings.ReplaceAll(out, "'", `'\''`) + "'",
		"remove the pins":                fmt.Sprintf("rm -rf %[1]s; find $(dirname %[1]s) -delete; ", s.BPFDir) + out,
		"mount bpffs":                    "d=$(mktemp -d) && mount -t bpf none $d && ls $d; " + out,
		"look at the programs":           "bpftool prog show && echo OUT; bpftool cgroup show /sys/fs/cgroup && echo OUT; " + out,
		"tear down by netfenced":         fmt.Sprintf("%s --socket %s detach --all; ", s.Binary, s.Socket) + out,
		"ask systemd":                    "timeout 2 systemd-run --scope true && echo OUT; timeout 2 systemd-run --wait true && echo OUT; " + out,
		"trace the parent":               "timeout 1 strace -p $PPID -o /dev/null -e trace=none; timeout 1 strace -p 1; " + out,
		"write into the parent":          "echo x > /proc/$PPID/mem && echo OUT; cat /proc/$PPID/environ > /dev/null; ls /proc/$PPID/fd/ > /dev/null; " + out,
		"the machine's containers":       "ls -la /run/docker.sock /run/containerd/containerd.sock /run/podman/podman.sock && echo OUT; " + out,
		"a tunnel":                       "ip link add tun9 type dummy; ip tuntap add tun8 mode tap; ip route replace default dev lo; " + out,
		"a raw socket":                   fmt.Sprintf("ping -c 1 -W 1 %s > /dev/null && echo OUT; ", forbidden) + out,
		"become somebody by set-uid":     "sudo -n " + out + "; " + out,
		"stop run":                       "kill -STOP $PPID; " + out + "; kill -CONT $PPID",
	}
	t.Run("attempts", func(t *testing.T) {
		for who, env := range map[string][]string{"root": nil, "sudo": {"SUDO_UID=65534", "SUDO_GID=65534", "SUDO_USER=nobody"}} {
			for what, script := range attempts {
				t.Run(what+" as "+who, func(t *testing.T) {
					t.Parallel() // they mostly wait
					r := s.run(t, fenced{env: env}, "--allow", "198.51.100.1", "--", "bash", "-c", script+"; echo tried; exit 0")
					if !strings.HasSuffix(r.Stdout, "tried\n") {
						t.Errorf("not tried:\n%s%s", r.Stdout, r.Stderr)
					}
					if strings.Contains(r.Stdout, "OUT") {
						t.Errorf("a way out:\n%s%s", r.Stdout, r.Stderr)
					}
				})
			}
		}
	})
	if n := s.Arrived.Sum(t, func(p testenv.Packet) bool { return p.Dst.String() == forbidden }).Count; n != 0 {
		t.Errorf("%d packets got out", n)
	}
	if now, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(now) != string(outside) {
		t.Errorf("the test itself was moved to %s (%v)", now, err)
	}
	if !s.opens(t, place{Workload: s.OnHost}, forbidden) {
		t.Error("without the fence it is not reached either")
	}
	s.nothingLeft(t)
}
