// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/testenv"
)

// smallMTU is the least that IPv6 may be used with (RFC 8200 section 5).
const smallMTU = 1280

// TestLargeAnswers: an upstream's datagram that comes in fragments is put together, and what is too large for the way to
// the workload never leaves in fragments: it is as large as any way takes, or is asked for again over TCP.
func TestLargeAnswers(t *testing.T) {
	const server = "198.51.100.61"
	texts := map[string]int{"fits.example.": 4, "fragments.example.": 7}
	s := newNamed(t, testenv.VethDevice, testenv.Zone{})
	serveLies(t, s.Outside, server, func(query *dns.Msg, send func(*dns.Msg)) {
		reply := new(dns.Msg).SetReply(query)
		reply.Compress = true
		for i := range texts[strings.ToLower(query.Question[0].Name)] {
			header := dns.RR_Header{Name: query.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}
			reply.Answer = append(reply.Answer, &dns.TXT{Hdr: header, Txt: []string{fmt.Sprint(i) + strings.Repeat("x", 249)}})
		}
		send(reply)
	})
	setMTU(t, s.Host, s.Link, smallMTU)
	setMTU(t, s.Workload, "eth0", smallMTU)
	s.Policy(t, "names.yaml", allowing("*.example")+"  forward: [{zone: example, to: ["+server+"]}]\n")
	s.Start(t)
	before := reassembled(t, s.Host)
	s.both(t, func(t *testing.T, p place, _ string) {
		for _, at := range []string{public, public6} {
			for name, n := range texts {
				for _, args := range [][]string{{"+ignore"}, {}, {"+tcp"}} {
					a := p.sections(t, at, append([]string{name, "TXT", "+bufsize=4096"}, args...))
					cut := name != "fits.example." && slices.Equal(args, []string{"+ignore"})
					if a.status != "NOERROR" || a.flag("tc") != cut || !cut && len(a.records) != n {
						t.Errorf("%s at %s, %s: %d records\n%s", name, at, args, len(a.records), a.text)
					}
				}
			}
		}
	})
	if reassembled(t, s.Host) == before {
		t.Error("no datagram came in fragments")
	}
	if n := s.Others[0].Asked(nil) + s.Others[1].Asked(nil); n != 0 {
		t.Errorf("another resolver was asked %d times", n)
	}
}

// TestManyAddresses: a name with more addresses than a datagram holds, for resolvers that ask again over TCP and one that
// does not (musl before 1.2.4); whatever they were told may be reached, and all of it at once.
func TestManyAddresses(t *testing.T) {
	zone := testenv.Zone{}
	var addrs []string
	for i := range 100 {
		addr := fmt.Sprintf("203.0.113.%d", i+1)
		addrs = append(addrs, addr)
		zone.Records = append(zone.Records, "many.example. 60 IN A "+addr)
	}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "names.yaml", allowing("many.example"))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		for _, by := range []testenv.Resolver{testenv.Glibc, testenv.GoResolver, testenv.Dig} {
			if a := s.look(t, p, testenv.Lookup{By: by, Name: "many.example"}); !sameAddrs(a.Addrs, addrs...) {
				t.Errorf("%s has %d addresses: %s", by, len(a.Addrs), a)
			}
		}
		if a := s.look(t, p, testenv.Lookup{By: testenv.Musl, Name: "many.example"}); len(a.Addrs) < 20 {
			t.Errorf("%s", a)
		}
		s.reaches(t, p, true, addrs[0], addrs[50], addrs[99])
		s.reaches(t, p, false, "203.0.113.101")
		if learned := s.learned(t, id); len(learned) != len(addrs) {
			t.Errorf("policy show lists %d addresses", len(learned))
		}
	})
	s.nobodyElseAsked(t)
}

func setMTU(t *testing.T, ns *testenv.NS, name string, mtu int) {
	t.Helper()
	var err error
	ns.Do(func() {
		var link netlink.Link
		if link, err = netlink.LinkByName(name); err == nil {
			err = netlink.LinkSetMTU(link, mtu)
		}
	})
	if err != nil {
		t.Fatalf("MTU of %s: %v", name, err)
	}
}

// reassembled counts the IPv4 datagrams that came to a namespace in fragments and were put together.
func reassembled(t *testing.T, ns *testenv.NS) int {
	t.Helper()
	var text []byte
	var err error
	ns.Do(func() { text, err = os.ReadFile("/proc/thread-self/net/snmp") })
	if err != nil {
		t.Fatal(err)
	}
	var names, values []string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Ip:"); ok {
			names, values = values, strings.Fields(rest)
		}
	}
	n, err := strconv.Atoi(values[slices.Index(names, "ReasmOKs")])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
