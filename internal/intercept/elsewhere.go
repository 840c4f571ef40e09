// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/dnsproxy"
)

// ElsewhereKernel is told which namespaces are listened in; *datapath.Datapath is one.
type ElsewhereKernel interface {
	ListenIn(netns uint64) (io.Closer, error)
	Behind(index uint32, nsids []int)
}

// Elsewhere answers processes of cgroups that are in other network namespaces than
// the host's, by sockets opened inside these. Sockets keep a namespace, so they are
// closed soon after the last such process has left it.
type Elsewhere struct {
	kernel ElsewhereKernel
	serve  func(context.Context, *Front) error
	filter *datapath.DNSFilter
	port   uint16
	log    *slog.Logger
	home   string

	mu      sync.Mutex
	closed  bool
	spaces  map[string]*space  // by what /proc/PID/ns/net says
	cgroups map[uint32]*cgroup // with processes elsewhere, by the attachment's index
}

// cgroup is one that is attached.
type cgroup struct {
	path   string
	spaces []string
}

// space is a namespace with sockets in it.
type space struct {
	nsid      int // in the host's
	front     *Front
	listening io.Closer
	stop      context.CancelFunc
	done      chan struct{} // closed when nobody serves any more

	mu     sync.Mutex
	admits map[uint32]bool // attachments whose processes are there
}

// sweep is how soon sockets are closed that nobody needs any more.
const sweep = 2 * time.Second

// NewElsewhere opens sockets like those of f, a front for cgroups. serve answers there until its context ends.
func NewElsewhere(k ElsewhereKernel, f *Front, serve func(context.Context, *Front) error, log *slog.Logger) (*Elsewhere, error) {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	return &Elsewhere{
		kernel: k, serve: serve, filter: f.filter, port: f.port, log: log, home: home,
		spaces: make(map[string]*space), cgroups: make(map[uint32]*cgroup),
	}, nil
}

// Look opens sockets where processes of the cgroup attached at index are and there
// are none yet. It returns of how many processes the queries are refused all the
// same, and why.
func (e *Elsewhere) Look(path string, index uint32) (refused int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return 0, nil
	}
	return e.look(path, index)
}

func (e *Elsewhere) look(path string, index uint32) (refused int, err error) {
	found := make(map[string][]string) // processes, by namespace
	for _, pid := range processes(path) {
		name, err := os.Readlink(filepath.Join("/proc", pid, "ns/net"))
		if err == nil && name != e.home {
			found[name] = append(found[name], pid)
		}
	}
	c := &cgroup{path: path}
	var nsids []int
	for name, pids := range found {
		s := e.spaces[name]
		if s == nil {
			var openErr error
			if s, openErr = e.open(pids); openErr != nil {
				refused, err = refused+len(pids), openErr
				continue
			}
			e.spaces[name] = s
		}
		s.admit(index, true)
		c.spaces = append(c.spaces, name)
		nsids = append(nsids, s.nsid)
	}
	if before := e.cgroups[index]; before != nil {
		for _, name := range before.spaces {
			if s := e.spaces[name]; s != nil && !slices.Contains(c.spaces, name) {
				s.admit(index, false)
			}
		}
	}
	delete(e.cgroups, index)
	if len(c.spaces) > 0 {
		e.cgroups[index] = c
	}
	e.kernel.Behind(index, nsids)
	return refused, err
}

// processes are those in a cgroup and below it, as they are now.
func processes(path string) (pids []string) {
	// A cgroup that is removed meanwhile has none.
	_ = filepath.WalkDir(path, func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil //nolint:nilerr // see above
		}
		if text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil {
			pids = append(pids, strings.Fields(string(text))...)
		}
		return nil
	})
	return pids
}

// open opens sockets in the namespace that the processes are in.
func (e *Elsewhere) open(pids []string) (*space, error) {
	var ns *os.File
	var err error
	for _, pid := range pids { // the first may have ended
		if ns, err = os.Open(filepath.Join("/proc", pid, "ns/net")); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	s := &space{front: &Front{}, done: make(chan struct{}), admits: make(map[uint32]bool)}
	if s.nsid, err = netnsID(ns); err != nil {
		return nil, fmt.Errorf("id of network namespace: %w", err)
	}
	var cookie uint64
	err = inNamespace(ns, func() error {
		where := &place{host: e.filter.Strict(), origin: dnsproxy.OtherNetns, netns: s.nsid, admits: s.has}
		v6, err := where.open(s.front, e.port)
		if err == nil {
			cookie, err = netnsCookie(s.front.Packets[0].(*packets).conn)
		}
		if err == nil && v6 {
			var route *netlink.Route
			if route, err = dnsRoute(e.port); err == nil {
				err = netlink.RouteReplace(route)
			}
		}
		return err
	})
	if err == nil {
		s.listening, err = e.kernel.ListenIn(cookie)
	}
	if err != nil {
		return nil, errors.Join(err, s.front.Close())
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	go func() {
		defer close(s.done)
		if err := e.serve(ctx, s.front); err != nil {
			e.log.Warn("names are not resolved in a network namespace", "err", err)
		}
	}()
	return s, nil
}

// netnsID is the id of a namespace in this one, which it keeps for as long as it lives. It has one if a veth leads there;
// else it is given one.
func netnsID(ns *os.File) (int, error) {
	id, err := netlink.GetNetNsIdByFd(int(ns.Fd()))
	if err != nil || id >= 0 {
		return id, err
	}
	if err := netlink.SetNetNsIdByFd(int(ns.Fd()), -1); err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, err
	}
	if id, err = netlink.GetNetNsIdByFd(int(ns.Fd())); err == nil && id < 0 {
		err = unix.ENOENT
	}
	return id, err
}

func (s *space) admit(index uint32, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if yes {
		s.admits[index] = true
		return
	}
	delete(s.admits, index)
}

// needed is false when no attachment has processes there, or the sockets failed.
func (s *space) needed() bool {
	select {
	case <-s.done:
		return false
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.admits) > 0
}

func (s *space) has(index uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admits[index]
}

// close refuses queries, and then ends the sockets.
func (s *space) close() error {
	err := s.listening.Close()
	s.stop()
	<-s.done
	return errors.Join(err, s.front.Close())
}

// Run closes the sockets that nobody needs any more until ctx ends, and then all.
func (e *Elsewhere) Run(ctx context.Context) error {
	again := time.NewTicker(sweep)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			e.sweep()
		case <-ctx.Done():
			return e.close()
		}
	}
}

func (e *Elsewhere) sweep() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for index, c := range e.cgroups {
		// Why not was told when the process was first seen there.
		_, _ = e.look(c.path, index)
	}
	for name, s := range e.spaces {
		if s.needed() {
			continue
		}
		delete(e.spaces, name)
		if err := s.close(); err != nil {
			e.log.Warn("close DNS sockets in a network namespace", "err", err)
		}
	}
}

// Forget is told that the attachment at index is no more.
func (e *Elsewhere) Forget(index uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.cgroups[index]; c != nil {
		for _, name := range c.spaces {
			if s := e.spaces[name]; s != nil {
				s.admit(index, false)
			}
		}
		delete(e.cgroups, index)
	}
}

func (e *Elsewhere) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	var errs []error
	for _, s := range e.spaces {
		errs = append(errs, s.close())
	}
	clear(e.spaces)
	return errors.Join(errs...)
}
