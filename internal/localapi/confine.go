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
)

// warnings say what the attachment does not confine, as far as it shows now.
func warnings(a state.Attachment) []string {
	var list []string
	if a.Target.Type == target.Cgroup {
		if n := escaping(a.Target.Name, "/proc"); n > 0 {
			list = append(list, fmt.Sprintf("%d processes of the cgroup have CAP_NET_ADMIN, CAP_NET_RAW or CAP_BPF: "+
				"tunnels and packet sockets of theirs pass the filter by (drop these capabilities)", n))
		}
	}
	if dns := a.Policy.DNS; len(dns.Allow)+len(dns.Deny) > 0 {
		list = append(list, "domain rules are stored and have no effect yet: addresses alone decide")
	}
	return list
}

// maxLooked bounds the processes that are looked at: it is a hint, and a cgroup may hold thousands.
const maxLooked = 1024

// escaping counts processes in the cgroup and below it that hold a capability with which to get around a cgroup filter.
// What cannot be read has ended meanwhile, and a process that is moved in later is not seen: this warns, it does not
// enforce.
func escaping(cgroup, proc string) int {
	looked, count := 0, 0
	// The function returns no error, and so the walk does not.
	_ = filepath.WalkDir(cgroup, func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // the directory has been removed since
		}
		for _, pid := range processes(dir) {
			if looked++; looked > maxLooked {
				return fs.SkipAll
			}
			if capabilities(filepath.Join(proc, pid, "status"))&(1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW|1<<unix.CAP_BPF) != 0 {
				count++
			}
		}
		return nil
	})
	return count
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
