// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// leaveEnv says what the inner suite of TestMainFindsWhatIsLeft is to leave.
const leaveEnv = "NETFENCE_TEST_LEAVE"

var idle = NewFunc("idle", func([]string) error {
	select {}
})

// TestLeave is the inner suite.
func TestLeave(t *testing.T) {
	what, ok := os.LookupEnv(leaveEnv)
	if !ok {
		return
	}
	var err error
	switch what {
	case "nothing":
	case "cgroup":
		var root string
		if root, err = cgroupRoot(); err == nil {
			err = os.Mkdir(filepath.Join(root, uniqueName()), 0o755)
		}
	case "bpffs":
		dir := filepath.Join(os.TempDir(), uniqueName())
		if err = os.Mkdir(dir, 0o700); err == nil {
			err = unix.Mount("bpf", dir, "bpf", 0, "")
		}
	case "process":
		err = idle.Command().Start()
	case leftInNetwork[0], leftInNetwork[1], leftInNetwork[2]:
		var machine *os.File
		if machine, err = os.Open("/proc/" + suite() + "/ns/net"); err != nil {
			break
		}
		(&NS{machine}).Do(func() { err = inNetwork(what, true) })
	case "crash":
		cg := NewCgroup(t)
		StartWorkload(t, nil, cg)
		BPFFS(t)
		err = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
}

var leftInNetwork = [...]string{"link", "ip rule", "route"}

// inNetwork adds something to the network namespace, or deletes it.
func inNetwork(what string, add bool) error {
	switch what {
	case "link":
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "leftover0"
		if add {
			return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		}
		link, err := netlink.LinkByName(attrs.Name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	case "ip rule":
		rule := netlink.NewRule()
		rule.Table, rule.Priority = 4711, 4711
		if add {
			return netlink.RuleAdd(rule)
		}
		return netlink.RuleDel(rule)
	default:
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		_, dst, err := net.ParseCIDR("198.18.0.0/15")
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
		if add {
			return netlink.RouteAdd(route)
		}
		return netlink.RouteDel(route)
	}
}

func TestMainFindsWhatIsLeft(t *testing.T) {
	Require(t, Root, Cgroup2)
	for what, want := range map[string][]string{
		"nothing": nil,
		"cgroup":  {"cgroup "},
		"bpffs":   {"bpffs "},
		"process": {"process "},
		"link":    {"link "},
		"ip rule": {"ip rule "},
		"route":   {"route 198.18.0.0/15"},
		"crash":   {"cgroup ", "bpffs ", "the suite ended by signal: killed"},
	} {
		t.Run(what, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestLeave$")
			for _, env := range os.Environ() {
				if !strings.HasPrefix(env, suiteEnv+"=") {
					cmd.Env = append(cmd.Env, env)
				}
			}
			cmd.Env = append(cmd.Env, leaveEnv+"="+what)
			out, err := cmd.CombinedOutput()
			// What may be somebody else's was reported, and is still there to be removed.
			if slices.Contains(leftInNetwork[:], what) {
				if err := inNetwork(what, false); err != nil {
					t.Errorf("remove %s: %v", what, err)
				}
			}
			if (err == nil) != (want == nil) {
				t.Errorf("exit: %v", err)
			}
			for _, w := range want {
				if !strings.Contains(string(out), w) {
					t.Errorf("no %q in the output", w)
				}
			}
			if want == nil && strings.Contains(string(out), "left behind") || t.Failed() {
				t.Errorf("output:\n%s", out)
			}
		})
	}
}
