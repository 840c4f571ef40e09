// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datagram"
)

// failure is why there is no answer, as the client is told.
type failure struct {
	code     uint16 // RFC 8914
	text     string
	detail   string  // for the host's side: which server that was
	upstream []extra // what the server itself said
	timeout  bool    // nobody answered in time
}

// asker has servers asked, in their order, and calls done once, perhaps before
// it returns: with a message that answers the request, or when there is none by
// the deadline.
type asker func(servers []netip.AddrPort, r *request, deadline time.Time, done func(*answer, *failure))

// upstream asks servers: over UDP from a few sockets that are replaced all the
// time, and over TCP where the answer does not fit or is in doubt. Sockets are
// opened when there is something to ask, and closed when there is not.
type upstream struct {
	control func(network, address string, c syscall.RawConn) error
	try     time.Duration
	least   time.Duration // leastPatience; tests have more
	sockets *datagram.Poller
	running sync.WaitGroup // what asks over TCP
	most    int32          // of kept
	kept    atomic.Int32   // UDP sockets, and connections that wait for use

	// mu guards what follows. No other lock is held with it.
	mu      sync.Mutex
	servers map[netip.AddrPort]*server
	sweep   int // how many servers there may be until those are forgotten that are not needed
	quests  map[*quest]struct{}
	ending  bool // nobody is asked any more, until open

	out outgoing
}

const (
	// maxServers is how many servers something is remembered of: policies may name any number.
	maxServers = 1024
	// maxKept is how many sockets are kept for the next query, or an eighth of the files that may be open. Beyond
	// that each is for one: where a workload chooses its server it may choose another for each query.
	maxKept = 1024
)

func newUpstream(o *Options, sockets *datagram.Poller) *upstream {
	return &upstream{
		control: o.Control, try: o.TryTimeout, least: leastPatience, sockets: sockets, most: int32(min(maxKept, openFiles()/8)), sweep: maxServers,
		servers: make(map[netip.AddrPort]*server), quests: make(map[*quest]struct{}),
	}
}

// open has servers asked again after close.
func (u *upstream) open() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ending = false
}

// stops is why there is no answer to what is asked while the server ends.
func stops() *failure {
	return &failure{code: dns.ExtendedErrorCodeNotReady, text: "the server stops"}
}

// close ends every wait and closes every socket. What is asked meanwhile, by who had waited with somebody whose time was
// over just now, is not asked of anybody.
func (u *upstream) close() {
	u.mu.Lock()
	u.ending = true
	quests, servers := slices.Collect(maps.Keys(u.quests)), slices.Collect(maps.Values(u.servers))
	clear(u.servers)
	u.mu.Unlock()
	for _, q := range quests {
		q.finish(nil, stops())
	}
	for _, s := range servers {
		s.close()
	}
	u.running.Wait()
}

// at is what is known of the servers at some addresses, those that failed
// lately behind the others.
func (u *upstream) at(addrs []netip.AddrPort) []*server {
	servers := make([]*server, 0, 4)
	u.mu.Lock()
	for _, addr := range addrs {
		s := u.servers[addr]
		if s == nil {
			if len(u.servers) >= u.sweep {
				maps.DeleteFunc(u.servers, func(_ netip.AddrPort, s *server) bool { return s.idle() })
				u.sweep = max(maxServers, 2*len(u.servers))
			}
			s = &server{addr: addr, u: u, streaming: gate{each: streamsEach, all: streamsPerServer}}
			u.servers[addr] = s
		}
		servers = append(servers, s)
	}
	u.mu.Unlock()
	if len(servers) > 1 {
		now := time.Now()
		slices.SortStableFunc(servers, func(a, b *server) int { return cmp.Compare(a.rank(now), b.rank(now)) })
	}
	return servers
}

// errTimeout is the error of a server that does not answer.
var errTimeout = errors.New("no answer")

func unreachable(s *server, err error) *failure {
	f := &failure{code: dns.ExtendedErrorCodeNetworkError, text: fmt.Sprintf("upstream: %v", err), detail: s.addr.String()}
	if errors.Is(err, errTimeout) {
		f.code, f.timeout = dns.ExtendedErrorCodeNoReachableAuthority, true
	}
	return f
}

// lame reports an answer that another server may have better.
func lame(s *server, wire []byte) *failure {
	switch rcode := int(wire[3] & 0xf); rcode {
	case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeYXDomain:
		return nil
	default:
		f := &failure{code: dns.ExtendedErrorCodeOther, text: "upstream answers " + dns.RcodeToString[rcode], detail: s.addr.String()}
		if m, err := unpack(wire); err == nil {
			f.text, f.upstream = "upstream answers "+dns.RcodeToString[m.Rcode], explanations(m)
		}
		return f
	}
}

// close ends the server's sockets, on which nothing is waited for.
func (s *server) close() {
	s.mu.Lock()
	sockets, streams := s.open, s.streams
	s.open, s.streams, s.closed = nil, nil, true
	s.u.kept.Add(-int32(len(streams)))
	s.mu.Unlock()
	for _, k := range sockets {
		k.end()
	}
	for _, c := range streams {
		c.end.Stop()
		c.Close()
	}
}
