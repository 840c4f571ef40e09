// SPDX-License-Identifier: Apache-2.0

package target

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Occupants counts the processes in a cgroup, and below it, that its filter does
// not wholly confine.
type Occupants struct {
	// Capable hold a capability with which to get around a cgroup filter:
	// CAP_NET_ADMIN, CAP_NET_RAW or CAP_BPF.
	Capable int
	// Connected hold internet or packet sockets that were opened elsewhere, and
	// that the filter therefore does not see.
	Connected int
	// Elsewhere are in another network namespace than the caller.
	Elsewhere int
	// More: there are so many processes or sockets that not all were looked at.
	More bool
}

const (
	// maxProcesses and maxSockets bound what is looked at: a cgroup may hold
	// thousands, and Attach waits.
	maxProcesses = 1024
	maxSockets   = 16384
)

// Look looks at the processes of a cgroup as they are now. It cannot read what
// has ended meanwhile and does not see what is moved in later: this warns, it
// does not enforce. Sockets of others' processes need CAP_SYS_PTRACE to be seen.
func Look(cgroup string) Occupants {
	return look(cgroup, "/proc")
}

// scene is what is gathered for a verdict about sockets.
type scene struct {
	proc    string
	home    string          // the caller's network namespace
	inside  map[uint64]bool // ids of the cgroup and those below
	holders []holder
	sockets int
}

// holder is a process with sockets.
type holder struct {
	pid     string
	netns   string
	sockets []uint32 // inodes
}

func look(cgroup, proc string) Occupants {
	var seen Occupants
	if empty(cgroup) {
		return seen
	}
	s := scene{proc: proc, home: netnsOf(proc, "self"), inside: make(map[uint64]bool)}
	count := 0
	// The function returns no error, and so the walk does not.
	_ = filepath.WalkDir(cgroup, func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // the directory has been removed since
		}
		if info, err := entry.Info(); err == nil {
			s.inside[info.Sys().(*syscall.Stat_t).Ino] = true // which is a cgroup's id
		}
		for _, pid := range processes(dir) {
			if count++; count > maxProcesses {
				seen.More = true
				return nil // the ids of all cgroups are of use all the same
			}
			if capabilities(filepath.Join(proc, pid, "status"))&(1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW|1<<unix.CAP_BPF) != 0 {
				seen.Capable++
			}
			netns := netnsOf(proc, pid)
			if netns != "" && netns != s.home {
				seen.Elsewhere++
			}
			s.hold(pid, netns)
		}
		return nil
	})
	seen.Connected = s.connected()
	seen.More = seen.More || s.sockets >= maxSockets
	return seen
}

// empty is true if there is no process in the cgroup or below it, as in most that are
// attached before their workload is started.
func empty(cgroup string) bool {
	events, err := os.ReadFile(filepath.Join(cgroup, "cgroup.events"))
	return err == nil && strings.HasPrefix(string(events), "populated 0\n")
}

// hold notes the sockets of a process.
func (s *scene) hold(pid, netns string) {
	dir, err := os.Open(filepath.Join(s.proc, pid, "fd"))
	if err != nil {
		return
	}
	defer dir.Close()
	h := holder{pid: pid, netns: netns}
	names, _ := dir.Readdirnames(-1) // what was read before an error counts
	for _, name := range names {
		link, err := os.Readlink(filepath.Join(dir.Name(), name))
		if err != nil || s.sockets >= maxSockets {
			continue
		}
		text, ok := strings.CutPrefix(strings.TrimSuffix(link, "]"), "socket:[")
		if inode, err := strconv.ParseUint(text, 10, 32); ok && err == nil {
			h.sockets = append(h.sockets, uint32(inode))
			s.sockets++
		}
	}
	if len(h.sockets) > 0 {
		s.holders = append(s.holders, h)
	}
}

// netnsOf names the network namespace of a process; empty: there is no such
// process any more.
func netnsOf(proc, pid string) string {
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
