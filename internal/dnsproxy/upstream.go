// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// request is what a server is asked.
type request struct {
	dns.Question // in lower case
	do, cd, ad   bool
}

// failure is why there is no answer, as the client is told.
type failure struct {
	code     uint16 // RFC 8914
	text     string
	detail   string  // for the host's side: which server that was
	upstream []extra // what the server itself said
}

// exchanger returns a server's answer, parsed and as it came. The parsed one is
// the caller's to change.
type exchanger func(context.Context, []netip.AddrPort, request) (*dns.Msg, []byte, *failure)

// upstream asks servers: over UDP from a socket, and so a source port, of its
// own for every try, and over TCP where the answer does not fit or is in doubt.
type upstream struct {
	control func(network, address string, c syscall.RawConn) error
	try     time.Duration
	health  health
}

func newUpstream(o *Options) *upstream {
	return &upstream{control: o.Control, try: o.TryTimeout}
}

var (
	errTimeout = errors.New("no answer")
	errNoEDNS  = errors.New("does not speak EDNS")
	errUseTCP  = errors.New("truncated")
)

// ask goes through the servers in turn, and again through those that were
// silent, with more patience each time, until ctx ends.
func (u *upstream) ask(ctx context.Context, servers []netip.AddrPort, r request) (*dns.Msg, []byte, *failure) {
	var last *failure
	patience := u.try
	for left := u.health.order(servers); len(left) > 0; patience *= 2 {
		var silent []netip.AddrPort
		for _, server := range left {
			m, wire, err := u.askOne(ctx, server, r, patience)
			if err == nil {
				if last = lame(server, m); last == nil {
					u.health.good(server)
					return m, wire, nil
				}
				continue
			}
			u.health.bad(server)
			if ctx.Err() != nil {
				return nil, nil, orElse(last, unreachable(server, errTimeout))
			}
			last = unreachable(server, err)
			if errors.Is(err, errTimeout) {
				silent = append(silent, server)
			}
		}
		left = silent
	}
	return nil, nil, orElse(last, &failure{code: dns.ExtendedErrorCodeNoReachableAuthority, text: "no upstream server"})
}

func orElse(a, b *failure) *failure {
	if a != nil {
		return a
	}
	return b
}

func unreachable(server netip.AddrPort, err error) *failure {
	f := &failure{code: dns.ExtendedErrorCodeNetworkError, text: fmt.Sprintf("upstream: %v", err), detail: server.String()}
	if errors.Is(err, errTimeout) {
		f.code = dns.ExtendedErrorCodeNoReachableAuthority
	}
	return f
}

// lame reports an answer that another server may have better.
func lame(server netip.AddrPort, m *dns.Msg) *failure {
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeYXDomain:
		return nil
	}
	return &failure{
		code:     dns.ExtendedErrorCodeOther,
		text:     "upstream answers " + dns.RcodeToString[m.Rcode],
		detail:   server.String(),
		upstream: explanations(m),
	}
}

// askOne asks one server for as long as patience lasts: with EDNS and, should
// it not know that, without; over UDP and, should that not do, over TCP.
func (u *upstream) askOne(ctx context.Context, server netip.AddrPort, r request, patience time.Duration) (*dns.Msg, []byte, error) {
	edns := true
	for {
		ctx, cancel := context.WithTimeout(ctx, patience)
		m, wire, err := u.exchange(ctx, "udp", server, r, edns)
		if errors.Is(err, errUseTCP) {
			m, wire, err = u.exchange(ctx, "tcp", server, r, edns)
		}
		cancel()
		if errors.Is(err, errNoEDNS) && edns {
			edns = false
			continue
		}
		return m, wire, err
	}
}

// exchange asks once and waits for the answer to just that.
func (u *upstream) exchange(ctx context.Context, network string, server netip.AddrPort, r request, edns bool) (*dns.Msg, []byte, error) {
	query, err := r.message(edns, network == "udp")
	if err != nil {
		return nil, nil, err
	}
	out, err := query.Pack()
	if err != nil {
		return nil, nil, fmt.Errorf("pack: %v", err)
	}
	dialer := net.Dialer{Control: u.control}
	c, err := dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, nil, netError(ctx, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() }) // its deadline, and a stop of the daemon
	defer stop()
	if network == "tcp" {
		err = writeMessage(c, out)
	} else {
		_, err = c.Write(out)
	}
	if err != nil {
		return nil, nil, netError(ctx, err)
	}
	buf := make([]byte, queryBytes)
	for {
		var in []byte
		if network == "tcp" {
			in, err = readMessage(c, time.Minute, dns.MaxMsgSize) // ctx ends before
		} else {
			var n int
			n, err = c.Read(buf)
			in = buf[:n]
		}
		if err != nil {
			return nil, nil, netError(ctx, err)
		}
		m, err := r.match(query, in, network == "udp")
		if err == nil && m == nil {
			continue // not an answer to this: spoofed, late, twice
		}
		return m, in, err
	}
}

// message makes the query that goes out. Nothing of the client's but its
// question and three flags does: no cookie, no client subnet.
func (r request) message(edns, mixCase bool) (*dns.Msg, error) {
	var random [2 + 32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("random numbers: %v", err)
	}
	m := &dns.Msg{Question: []dns.Question{r.Question}}
	m.Id = binary.BigEndian.Uint16(random[:2])
	m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = true, r.cd, r.ad
	if mixCase {
		m.Question[0].Name = mix(r.Name, random[2:])
	}
	if edns {
		m.SetEdns0(ednsBytes, r.do)
	}
	return m, nil
}

// mix writes the letters of a name in upper case where a bit is set
// (draft-vixie-dnsext-dns0x20): more for a spoofer to guess.
func mix(name string, bits []byte) string {
	b := []byte(name)
	for i, c := range b {
		if j := i % (8 * len(bits)); 'a' <= c && c <= 'z' && bits[j/8]>>(j%8)&1 == 1 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// match returns the message if it answers the query; nil and no error: keep
// waiting. errUseTCP and errNoEDNS: it answers, but must be asked otherwise.
func (r request) match(query *dns.Msg, in []byte, udp bool) (*dns.Msg, error) {
	if len(in) < headerBytes || binary.BigEndian.Uint16(in) != query.Id || in[2]&0x80 == 0 || in[2]>>3&0xf != dns.OpcodeQuery {
		return nil, nil
	}
	// The question is looked at before the rest, which a truncated message may lack.
	asked, end, ok := question(in)
	header := int(in[3] & 0xf)
	edns := query.IsEdns0() != nil
	switch want := query.Question[0]; {
	case !ok && edns && (header == dns.RcodeFormatError || header == dns.RcodeNotImplemented) && binary.BigEndian.Uint16(in[4:]) == 0:
		return nil, errNoEDNS // a server that stops at what it does not know may not repeat the question
	case !ok, asked.Qtype != want.Qtype, asked.Qclass != want.Qclass, !strings.EqualFold(asked.Name, want.Name):
		return nil, nil
	case udp && asked.Name != want.Name:
		return nil, errUseTCP // spoofed, or from a server that folds case
	case udp && (in[2]&0x2 != 0 || len(in) >= queryBytes):
		return nil, errUseTCP
	}
	// The rest of the message may point to the question for parts of its own
	// names, where the client would see how we spelt it.
	for i, c := range in[headerBytes:end] { // no length of a label is a letter
		if 'A' <= c && c <= 'Z' {
			in[headerBytes+i] = c + 'a' - 'A'
		}
	}
	m, err := unpack(in)
	if err != nil {
		return nil, nil
	}
	switch m.Rcode {
	case dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers:
		if edns {
			return nil, errNoEDNS
		}
	}
	return m, nil
}

// question reads the one question of a message, whose name ends before end.
// No name stands before it that it could point to.
func question(in []byte) (q dns.Question, end int, ok bool) {
	if binary.BigEndian.Uint16(in[4:]) != 1 {
		return q, 0, false
	}
	name, end, err := dns.UnpackDomainName(in, headerBytes)
	if err != nil || end+4 > len(in) || in[end-1] != 0 { // a pointer's last byte is at least headerBytes
		return q, 0, false
	}
	return dns.Question{Name: name, Qtype: binary.BigEndian.Uint16(in[end:]), Qclass: binary.BigEndian.Uint16(in[end+2:])}, end, true
}

// netError makes one error of the ways in which waiting ends, and leaves out
// the addresses, which the caller adds.
func netError(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return errTimeout
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// unhealthy is how long a server that failed is asked last.
const unhealthy = 10 * time.Second

// health remembers which servers failed lately.
type health struct {
	mu     sync.Mutex
	failed map[netip.AddrPort]time.Time
}

// order puts the servers that failed lately behind the others.
func (h *health) order(servers []netip.AddrPort) []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.failed) == 0 {
		return servers
	}
	now := time.Now()
	rank := func(s netip.AddrPort) int {
		if at, ok := h.failed[s]; ok && now.Sub(at) < unhealthy {
			return 1
		}
		return 0
	}
	servers = slices.Clone(servers)
	slices.SortStableFunc(servers, func(a, b netip.AddrPort) int { return rank(a) - rank(b) })
	return servers
}

func (h *health) good(s netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.failed, s)
}

func (h *health) bad(s netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failed == nil || len(h.failed) > 1024 { // policies may name any number of servers
		h.failed = make(map[netip.AddrPort]time.Time)
	}
	h.failed[s] = time.Now()
}
