// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// tablePolicy is what the rows of table are about.
const tablePolicy = `
mode: allowlist
allow:
  - 198.51.100.0/24
  - 203.0.113.0/24:8443/tcp
  - 2001:db8:100::/48
  - "[2001:db8:200::/48]:8443/tcp"
deny:
  - 198.51.100.128/25
  - 2001:db8:100:bad::/64
`

// row is one destination and all the ways in which it is tried.
type row struct {
	name   string
	to     string
	kinds  []testenv.ProbeKind
	mapped bool
	pass   bool
}

var (
	udpKinds = []testenv.ProbeKind{testenv.UDPConnected, testenv.UDPSendto, testenv.UDPSendmmsg}
	tcpUDP   = append([]testenv.ProbeKind{testenv.TCP}, udpKinds...)
	answered = append([]testenv.ProbeKind{testenv.Echo}, tcpUDP...)
	every    = append([]testenv.ProbeKind{testenv.Raw}, answered...)
)

var table = []row{
	{"allowed", "198.51.100.9:7", every, false, true},
	{"deny inside allow", "198.51.100.200:7", every, false, false},
	{"unlisted", "203.0.113.9:7", every, false, false},
	{"metadata address", "169.254.169.254:7", every, false, false},
	{"port rule", "203.0.113.9:8443", []testenv.ProbeKind{testenv.TCP}, false, true},
	{"port rule, other protocol", "203.0.113.9:8443", udpKinds, false, false},
	{"v6 allowed", "[2001:db8:100::5]:7", every, false, true},
	{"v6 deny inside allow", "[2001:db8:100:bad::5]:7", every, false, false},
	{"v6 unlisted", "[2001:db8:200::5]:7", every, false, false},
	{"v6 port rule", "[2001:db8:200::5]:8443", []testenv.ProbeKind{testenv.TCP}, false, true},
	{"v6 port rule, other protocol", "[2001:db8:200::5]:8443", udpKinds, false, false},
	{"v4-mapped allowed", "198.51.100.9:7", tcpUDP, true, true},
	{"v4-mapped deny inside allow", "198.51.100.201:7", tcpUDP, true, false},
	{"v4-mapped unlisted", "203.0.113.10:7", tcpUDP, true, false},
	{"v4-mapped port rule, other protocol", "203.0.113.10:8443", udpKinds, true, false},
}

// all is the table with one verdict for every row.
func all(pass bool) []row {
	var rows []row
	for _, r := range table {
		r.pass = pass
		rows = append(rows, r)
	}
	return rows
}

// refusal is what the sender of a forbidden probe must see; nil: whatever it likes.
type refusal func(testenv.Probe, testenv.Outcome) bool

// silent is how an interface refuses: the sender learns nothing.
func silent(_ testenv.Probe, out testenv.Outcome) bool { return out.Errno == 0 }

// protocolOfRaw is a protocol that nothing but the raw probes speaks: SCTP.
const protocolOfRaw = 132

// check tries every row from w. What must not pass is counted after something that was sent later has arrived.
func (s *scene) check(t testing.TB, w *testenv.Workload, rows []row, how refusal) {
	t.Helper()
	type dropped struct {
		row   row
		probe testenv.Probe
		seen  int
	}
	var drops []dropped
	for _, r := range rows {
		for _, kind := range r.kinds {
			p := testenv.Probe{Kind: kind, To: netip.MustParseAddrPort(r.to), Mapped: r.mapped}
			if kind == testenv.Raw {
				p.Protocol = protocolOfRaw
			}
			before := s.Arrived.Sum(t, matches(p)).Count
			if !r.pass {
				drops = append(drops, dropped{r, p, before})
				p.Count, p.Wait = 3, 10*time.Millisecond
				if out := w.Probe(t, p); out.Answered || how != nil && !how(p, out) {
					t.Errorf("%s: %s to %s: %s", r.name, kind, r.to, out)
				}
				continue
			}
			if kind != testenv.Raw {
				p.Wait = testenv.Patience
			}
			if out := w.Probe(t, p); out.Errno != 0 || out.Answered == (kind == testenv.Raw) {
				t.Errorf("%s: %s to %s: %s, want an answer", r.name, kind, r.to, out)
				continue
			}
			s.Arrived.Await(t, before+1, matches(p))
		}
	}
	s.settle(t, w)
	for _, d := range drops {
		if n := s.Arrived.Sum(t, matches(d.probe)).Count - d.seen; n != 0 {
			t.Errorf("%s: %s to %s: %d packets arrived", d.row.name, d.probe.Kind, d.row.to, n)
		}
	}
}

// settle returns when what w has sent so far has arrived or will not any more, shown by a packet to an address that
// every policy of this package allows, by way of either family.
func (s *scene) settle(t testing.TB, w *testenv.Workload) {
	t.Helper()
	for _, to := range []string{"198.51.100.1:9", "[2001:db8:100::1]:9"} {
		p := testenv.Probe{Kind: testenv.UDPSendto, To: netip.MustParseAddrPort(to)}
		before := s.Arrived.Sum(t, matches(p)).Count
		if out := w.Probe(t, p); out.Sent != 1 {
			t.Fatalf("control packet to %s: %s", to, out)
		}
		s.Arrived.Await(t, before+1, matches(p))
	}
}

// checkReplies shows that flows opened from outside to servers of w work, replies included, and that they let w open
// nothing by itself. addrs are where w is reached.
func (s *scene) checkReplies(t *testing.T, w *testenv.Workload, addrs []netip.Addr, how refusal) {
	t.Helper()
	outside := testenv.StartWorkload(t, s.Outside, nil)
	var conns []*testenv.Conn
	for _, addr := range addrs {
		conn := outside.Connect(t, netip.AddrPortFrom(addr, servedPort))
		if !conn.Echoes(t, testenv.Patience) {
			t.Errorf("connection from outside to %s: no echo", addr)
		}
		conns = append(conns, conn)
		if out := outside.Probe(t, testenv.Probe{Kind: testenv.Echo, To: netip.AddrPortFrom(addr, 0), Wait: testenv.Patience}); !out.Answered {
			t.Errorf("ping from outside to %s: %s", addr, out)
		}
		p := testenv.Probe{Kind: testenv.UDPSendto, To: netip.AddrPortFrom(addr, servedPort), Wait: 10 * time.Millisecond}
		if out := outside.Probe(t, p); out.Answered {
			t.Errorf("UDP from outside to %s: %s, want no reply flow", addr, out)
		}
	}
	var rows []row
	for _, peer := range outsideAddrs {
		rows = append(rows, row{"peer of an open flow", netip.AddrPortFrom(peer, echoPort).String(), every, false, false})
	}
	s.check(t, w, rows, how)
	for i, conn := range conns {
		if !conn.Echoes(t, testenv.Patience) {
			t.Errorf("connection from outside to %s: no echo any more", addrs[i])
		}
	}
}

// checkRepliesUnfiltered is the control of checkReplies.
func (s *scene) checkRepliesUnfiltered(t *testing.T, w *testenv.Workload, addrs []netip.Addr) {
	t.Helper()
	outside := testenv.StartWorkload(t, s.Outside, nil)
	for i, addr := range addrs {
		p := testenv.Probe{Kind: testenv.UDPSendto, To: netip.AddrPortFrom(addr, servedPort), Wait: testenv.Patience}
		if out := outside.Probe(t, p); !out.Answered {
			t.Errorf("without the filter: UDP from outside to %s: %s", addr, out)
		}
		s.check(t, w, []row{{"without the filter", netip.AddrPortFrom(outsideAddrs[i], echoPort).String(), every, false, true}}, nil)
	}
}

// servedPort is where workloads serve.
const servedPort = 8080

// earlyRefusal is how a cgroup refuses TCP and UDP: at once, by EPERM, before there is a packet.
func earlyRefusal(p testenv.Probe, out testenv.Outcome) bool {
	switch p.Kind {
	case testenv.TCP, testenv.UDPConnected:
		return out.Call == "connect" && out.Errno == unix.EPERM && out.Elapsed < time.Second*testenv.Slow
	case testenv.UDPSendto, testenv.UDPSendmmsg:
		return out.Errno == unix.EPERM && out.Sent == 0
	default:
		return true
	}
}
