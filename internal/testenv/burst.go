// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Burst resolves fresh names, n0 below Zone and so on, and sends to what each answer says in the next instant: what
// passes only when the kernel held the address before the answer was sent.
type Burst struct {
	Server netip.AddrPort
	Zone   string // "burst.example."; its names are Numbered
	IPv6   bool
	// From and Count are the first number and how many.
	From, Count int
	// UDP is the port to send a datagram to, TCP the one to connect to after every TCPEach-th name; 0: to none.
	UDP, TCP uint16
	TCPEach  int
}

// BurstResult is what the process saw.
type BurstResult struct {
	// Addrs are what the names were resolved to, in order; the zero Addr where there was no answer.
	Addrs []netip.Addr
	// Unanswered counts queries without an answer in time, Failed answers without an address.
	Unanswered, Failed int
	// Refused counts datagrams that the kernel did not take, Unconnected connections that did not come about.
	Refused, Unconnected int
	// First says what went wrong first.
	First string
	// Slowest and Elapsed are of one query, and of all.
	Slowest, Elapsed time.Duration
}

// enough of what is slow to fail, so that more of it tells nothing.
const enough = 10

// Run has a process in the network namespace and the cgroup do it; either may be nil.
func (b Burst) Run(t TB, ns *NS, cg *Cgroup) BurstResult {
	t.Helper()
	order, err := json.Marshal(b)
	if err != nil {
		t.Fatalf("burst: %v", err)
	}
	cmd := burst.Command(string(order))
	var out strings.Builder
	cmd.Stdout = &out
	Start(t, cmd, ns, cg)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("burst: %v", err)
	}
	var r BurstResult
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		t.Fatalf("burst: %v", err)
	}
	return r
}

var burst = NewFunc("burst", func(args []string) error {
	var b Burst
	if err := json.Unmarshal([]byte(args[0]), &b); err != nil {
		return err
	}
	r, err := b.run()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
})

func (b Burst) run() (r BurstResult, err error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(b.Server))
	if err != nil {
		return r, err
	}
	defer conn.Close()
	data, err := openSender(Probe{Kind: UDPSendto, To: netip.AddrPortFrom(b.unspecified(), b.UDP)})
	if err != nil {
		return r, err
	}
	defer unix.Close(data.fd)
	began := time.Now()
	for i := range b.Count {
		if r.Unanswered+r.Unconnected > enough {
			break
		}
		name := fmt.Sprintf("n%d.%s", b.From+i, b.Zone)
		asked := time.Now()
		addr, err := b.resolve(conn, name)
		r.Slowest = max(r.Slowest, time.Since(asked))
		r.Addrs = append(r.Addrs, addr)
		if !addr.IsValid() {
			if err != nil {
				r.Unanswered++
				r.note("%s: %v", name, err)
			} else {
				r.Failed++
				r.note("%s: no address in the answer", name)
			}
			continue
		}
		if b.UDP != 0 {
			if err := data.sendOne(netip.AddrPortFrom(addr, b.UDP)); err != nil {
				r.Refused++
				r.note("%s: send to %s: %v", name, addr, err)
			}
		}
		if b.TCP != 0 && (b.From+i)%b.TCPEach == 0 {
			out, err := Send(Probe{Kind: TCP, To: netip.AddrPortFrom(addr, b.TCP), Wait: Patience})
			if err != nil {
				return r, err
			}
			// A SYN that is dropped is sent again after a second, and would pass then.
			if !out.Answered || out.Elapsed > 900*time.Millisecond {
				r.Unconnected++
				r.note("%s: connect to %s: %s", name, addr, out)
			}
		}
	}
	r.Elapsed = time.Since(began)
	return r, nil
}

func (b Burst) unspecified() netip.Addr {
	if b.IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (r *BurstResult) note(format string, args ...any) {
	if r.First == "" {
		r.First = fmt.Sprintf(format, args...)
	}
}

// resolve asks once. The zero Addr without an error is an answer without one.
func (b Burst) resolve(conn *net.UDPConn, name string) (netip.Addr, error) {
	qtype := dns.TypeA
	if b.IPv6 {
		qtype = dns.TypeAAAA
	}
	query := new(dns.Msg).SetQuestion(name, qtype)
	client := dns.Client{Timeout: Patience}
	reply, _, err := client.ExchangeWithConn(query, &dns.Conn{Conn: conn})
	if err != nil {
		return netip.Addr{}, err
	}
	for _, rr := range reply.Answer {
		var addr netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			addr, _ = netip.AddrFromSlice(rr.A.To4())
		case *dns.AAAA:
			addr, _ = netip.AddrFromSlice(rr.AAAA.To16())
		}
		if addr.IsValid() {
			return addr, nil
		}
	}
	return netip.Addr{}, nil
}
