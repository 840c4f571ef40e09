// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// traces are things that exist on the machine, by description, with how to remove
// each; nil where that is not for a test suite to do, or it goes with another.
//
// What has no name of the suite's may have come from elsewhere while it ran, such as a
// container's interface or the pins of a daemon that filters: it is told of and not removed.
//
// Of cgroups, mounts and processes only those of this suite are looked at. The
// machine's own network, named network namespaces and the pins at the default
// place are nothing that any suite may touch, so all of them count.
type traces map[string]func() error

// look finds traces of everything but processes.
func look() (traces, error) {
	found := traces{}
	var errs []error
	for _, find := range []func(traces) error{
		findLinks, findRoutes, findRules, findNetns, findCgroups, findMounts, findPins, findBPF,
	} {
		errs = append(errs, find(found))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("look for traces: %w", err)
	}
	return found, nil
}

// grace is what BPF objects and killed processes get to go away by themselves, behind all else that the kernel has to
// do of that kind.
var grace = 20 * time.Second * Slow

// residue returns what there is that was not there before.
func residue(before traces) (traces, error) {
	var left traces
	var err error
	poll(grace, func() bool {
		if left, err = look(); err == nil {
			err = findProcesses(left)
		}
		alone := aloneNow()
		transient := false
		for what := range left {
			bpf := strings.HasPrefix(what, bpfTrace)
			// BPF objects of a suite that runs at the same time cannot be told from
			// this one's; the last suite to end judges them.
			if _, old := before[what]; old || bpf && !alone {
				delete(left, what)
				continue
			}
			transient = transient || bpf || strings.HasPrefix(what, processTrace)
		}
		return err != nil || !transient
	})
	return left, err
}

func findLinks(found traces) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	for _, link := range links {
		what := fmt.Sprintf("link %d %s in the machine's own network namespace", link.Attrs().Index, link.Attrs().Name)
		found[what] = nil
	}
	return nil
}

func findRoutes(found traces) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		// Lifetimes change by themselves; these are what identifies a route.
		what := fmt.Sprintf("route %v via %v dev %d table %d type %d priority %d", r.Dst, r.Gw, r.LinkIndex, r.Table, r.Type, r.Priority)
		found[what] = nil
	}
	return nil
}

func findRules(found traces) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return fmt.Errorf("ip rules: %w", err)
		}
		for _, rule := range rules {
			found[fmt.Sprintf("ip rule family %d: %s", family, rule)] = nil
		}
	}
	return nil
}

// findNetns finds those with a name. The others live by processes and descriptors.
func findNetns(found traces) error {
	const dir = "/run/netns"
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network namespaces: %w", err)
	}
	for _, e := range entries {
		found["network namespace "+filepath.Join(dir, e.Name())] = nil
	}
	return nil
}

// ownPrefix is that of the names that this suite makes. Only the supervising
// process calls it, whose id it contains.
func ownPrefix() string { return suitePrefix(strconv.Itoa(os.Getpid())) }

func findCgroups(found traces) error {
	root, err := cgroupRoot()
	if err != nil {
		return nil //nolint:nilerr // no cgroups, no traces
	}
	paths, err := filepath.Glob(filepath.Join(root, ownPrefix()+"*"))
	if err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	for _, path := range paths {
		found["cgroup "+path] = func() error { return removeCgroup(path) }
	}
	return nil
}

func findMounts(found traces) error {
	paths, err := filepath.Glob(filepath.Join(os.TempDir(), ownPrefix()+"*"))
	if err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	for _, path := range paths {
		found["bpffs "+path] = func() error { return removeBPFFS(path) }
	}
	return nil
}

// pinDir is where the daemon pins unless configured otherwise.
const pinDir = "/sys/fs/bpf/netfence"

func findPins(found traces) error {
	err := filepath.WalkDir(pinDir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			found["pin "+path] = nil
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pins: %w", err)
	}
	return nil
}

// processTrace begins the descriptions of what findProcesses finds.
const processTrace = "process "

// findProcesses finds children of the calling process, which the suite's lost ones
// have become. Those that ended are reaped.
func findProcesses(found traces) error {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.ECHILD || err == nil && pid == 0 {
			break
		}
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("reap: %w", err)
		}
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return fmt.Errorf("processes: %w", err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		// proc_pid_stat(5): pid (comm) state ppid; comm may contain anything.
		end := bytes.LastIndexByte(text, ')')
		fields := bytes.Fields(text[end+1:])
		if end < 0 || len(fields) < 2 || string(fields[1]) != strconv.Itoa(os.Getpid()) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return fmt.Errorf("processes: %w", err)
		}
		found[processTrace+string(text[:end+1])] = func() error { return unix.Kill(pid, unix.SIGKILL) }
	}
	return nil
}
