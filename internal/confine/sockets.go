// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// accepting is the flag of a socket that listens (__SO_ACCEPTCON, linux/net.h).
const accepting = 0x10000

// boundSockets are the paths at which somebody of this network namespace receives. Those of root obey uid 0, whatever
// they are for, and no table knows them all. Agents of ssh and gpg stay: what they do is to sign.
func boundSockets(env []string) ([]string, error) {
	text, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("unix sockets: %w", err)
	}
	var paths []string
	for line := range strings.Lines(string(text)) {
		path, ok := receiver(strings.TrimSuffix(line, "\n"))
		if !ok || strings.HasPrefix(filepath.Base(path), "S.gpg-agent") || slices.Contains(env, "SSH_AUTH_SOCK="+path) {
			continue
		}
		// The path is that of whoever bound it: here it may be nothing, or something else.
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// receiver reads a line of proc_net(5)'s unix: "Num: RefCount Protocol Flags Type St Inode Path".
func receiver(line string) (path string, ok bool) {
	const before = 7
	fields := strings.Fields(line)
	if len(fields) <= before || !filepath.IsAbs(fields[before]) {
		return "", false
	}
	flags, err := strconv.ParseUint(fields[3], 16, 32)
	kind, kindErr := strconv.ParseUint(fields[4], 16, 16)
	if err != nil || kindErr != nil || flags&accepting == 0 && kind != unix.SOCK_DGRAM {
		return "", false
	}
	return filepath.Clean(line[strings.Index(line, " "+fields[before])+1:]), true // it may have spaces
}
