// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// warnings say what the attachment does not confine, as far as it shows now.
func warnings(a state.Attachment) []string {
	var list []string
	filtersDNS := a.Policy.Mode != policy.ModeBlockAll && a.Policy.DNS.Mode != policy.DNSDisabled
	if a.Target.Type == target.Cgroup {
		seen := look(a.Target.Name, "/proc")
		if seen.escaping > 0 {
			list = append(list, fmt.Sprintf("%d processes of the cgroup have CAP_NET_ADMIN, CAP_NET_RAW or CAP_BPF: "+
				"tunnels and packet sockets of theirs pass the filter by (drop these capabilities)", seen.escaping))
		}
		if filtersDNS && seen.elsewhere > 0 {
			list = append(list, fmt.Sprintf("%d processes of the cgroup are in another network namespace, where DNS is not answered yet: "+
				"port 53 is denied to them (attach the host's end of their interface)", seen.elsewhere))
		}
	}
	if filtersDNS && a.Target.Direction == target.Egress {
		list = append(list, "DNS of an egress attachment is not answered yet: port 53 is dropped")
	}
	return list
}

// maxLooked bounds the processes that are looked at: it is a hint, and a cgroup may hold thousands.
const maxLooked = 1024

// looked is how many processes in a cgroup, and below it, are of a kind.
type looked struct {
	escaping  int // they hold a capability with which to get around a cgroup filter
	elsewhere int // they are in another network namespace than the daemon
}

// look cannot read what has ended meanwhile, and does not see what is moved in later: this warns, it does not enforce.
func look(cgroup, proc string) looked {
	var seen looked
	home, count := namespace(proc, "self"), 0
	// The function returns no error, and so the walk does not.
	_ = filepath.WalkDir(cgroup, func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // the directory has been removed since
		}
		for _, pid := range processes(dir) {
			if count++; count > maxLooked {
				return fs.SkipAll
			}
			if capabilities(filepath.Join(proc, pid, "status"))&(1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW|1<<unix.CAP_BPF) != 0 {
				seen.escaping++
			}
			if net := namespace(proc, pid); net != "" && net != home {
				seen.elsewhere++
			}
		}
		return nil
	})
	return seen
}

// namespace names the network namespace of a process; empty: there is no such process any more.
func namespace(proc, pid string) string {
	name, err := os.Readlink(filepath.Join(proc, pid, "ns/net"))
	if err != nil {
		return ""
	}
	return name
}

func processes(dir string) []string {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil // removed, or a threaded cgroup: its domain has the list
	}
	return strings.Fields(string(data))
}

// capabilities is the effective set of a process, 0 when there is none any more.
func capabilities(path string) uint64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err != nil {
				return 0
			}
			return set
		}
	}
	return 0
}
