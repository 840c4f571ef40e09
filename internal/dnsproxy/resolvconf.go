// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxNameservers = 3 // resolv.conf(5), MAXNS
	statEvery      = time.Second
)

// Resolvers are the nameservers of a resolv.conf, which is read again when it
// changes.
type Resolvers struct {
	path string

	mu      sync.Mutex
	looked  time.Time
	info    os.FileInfo
	servers []netip.AddrPort
}

// ResolvConf returns the nameservers of the file at path. It reads nothing yet.
func ResolvConf(path string) *Resolvers { return &Resolvers{path: path} }

// Upstreams is the Options.Upstreams of a configuration: the servers that it
// names, or if it names none, the host's.
func Upstreams(configured []netip.AddrPort) func() ([]netip.AddrPort, error) {
	if len(configured) == 0 {
		return ResolvConf("/etc/resolv.conf").Servers
	}
	return func() ([]netip.AddrPort, error) { return configured, nil }
}

// Servers is an Options.Upstreams.
func (r *Resolvers) Servers() ([]netip.AddrPort, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if len(r.servers) > 0 && now.Sub(r.looked) < statEvery {
		return r.servers, nil
	}
	info, err := os.Stat(r.path)
	if err == nil && len(r.servers) > 0 && unchanged(r.info, info) {
		r.looked = now
		return r.servers, nil
	}
	r.servers = nil
	if err != nil {
		return nil, fmt.Errorf("nameservers: %v (set dns.upstream)", err)
	}
	b, err := os.ReadFile(r.path)
	if err != nil {
		return nil, fmt.Errorf("nameservers: %v (set dns.upstream)", err)
	}
	servers := parseResolvConf(b)
	if len(servers) == 0 {
		return nil, fmt.Errorf("nameservers: %s has none (set dns.upstream)", r.path)
	}
	r.servers, r.info, r.looked = servers, info, now
	return servers, nil
}

func unchanged(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// parseResolvConf reads as the resolver of glibc does: a keyword stands at the
// beginning of its line, and what is not understood is passed over.
func parseResolvConf(b []byte) []netip.AddrPort {
	var servers []netip.AddrPort
	for line := range bytes.Lines(b) {
		rest, ok := strings.CutPrefix(string(line), "nameserver")
		if !ok || strings.TrimLeft(rest, " \t") == rest || len(servers) == maxNameservers {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		if addr, err := netip.ParseAddr(fields[0]); err == nil {
			if server := netip.AddrPortFrom(addr, 53); !slices.Contains(servers, server) {
				servers = append(servers, server)
			}
		}
	}
	return servers
}
