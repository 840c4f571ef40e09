// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/testenv"
)

// liars are upstreams that fail in one way each, the only ones first asked for a zone of their own. They mean to have
// the client told giveaway.
var liars = map[string]func(query *dns.Msg, send func(*dns.Msg)){
	"lame": func(query *dns.Msg, send func(*dns.Msg)) { send(new(dns.Msg).SetRcode(query, dns.RcodeRefused)) },
	"fails": func(query *dns.Msg, send func(*dns.Msg)) {
		send(new(dns.Msg).SetRcode(query, dns.RcodeServerFailure))
	},
	"truncates": func(query *dns.Msg, send func(*dns.Msg)) { // and has no TCP
		reply := lie(query)
		reply.Truncated = true
		send(reply)
	},
	"question": func(query *dns.Msg, send func(*dns.Msg)) {
		reply := lie(query)
		reply.Question[0].Name = "other.example."
		send(reply)
	},
	"id": func(query *dns.Msg, send func(*dns.Msg)) {
		reply := lie(query)
		reply.Id++
		send(reply)
	},
	"spelling": func(query *dns.Msg, send func(*dns.Msg)) { // 0x20
		reply := lie(query)
		reply.Question[0].Name = strings.ToUpper(reply.Question[0].Name)
		send(reply)
	},
	"late": func(query *dns.Msg, send func(*dns.Msg)) {
		time.AfterFunc(3*time.Second, func() { send(lie(query)) })
	},
	"twice": func(query *dns.Msg, send func(*dns.Msg)) {
		reply := new(dns.Msg).SetReply(query)
		reply.Answer = []dns.RR{address(query, "203.0.113.7")}
		send(reply)
		send(lie(query))
	},
}

func lie(query *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(query)
	reply.Question = append([]dns.Question(nil), query.Question...)
	reply.Answer = []dns.RR{address(query, giveaway)}
	return reply
}

func address(query *dns.Msg, addr string) dns.RR {
	return &dns.A{Hdr: dns.RR_Header{Name: query.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(addr)}
}

// TestUpstreamsThatLie: whatever the first upstream says or does not say, the client has the answer of an honest one,
// and nothing else is learned, not even when the lie comes later.
func TestUpstreamsThatLie(t *testing.T) {
	zone := testenv.Zone{Records: []string{}}
	policy := "mode: allowlist\nallow: [" + alwaysAllowed + "]\ndns:\n  allow: [\"*.example\"]\n  forward:\n"
	addresses := map[string]string{}
	for kind := range liars {
		addresses[kind] = fmt.Sprintf("198.51.100.%d", 60+len(addresses))
		zone.Records = append(zone.Records, "www."+kind+".example. 60 IN A 203.0.113.7")
		policy += fmt.Sprintf("    - {zone: %s.example, to: [%s, %s]}\n", kind, addresses[kind], upstream)
	}
	s := newNamed(t, testenv.VethDevice, zone)
	for kind, address := range addresses {
		serveLies(t, s.Outside, address, liars[kind])
	}
	s.Policy(t, "names.yaml", policy)
	s.Start(t)
	id := s.attach(t, s.inside)
	asked := time.Now()
	var lookups []testenv.Lookup
	for kind := range liars {
		lookups = append(lookups, testenv.Lookup{By: testenv.Dig, Server: public, Name: "www." + kind + ".example"})
	}
	for i, a := range s.lookAll(t, s.inside, lookups) {
		if !sameAddrs(a.Addrs, "203.0.113.7") {
			t.Errorf("%s: %s", lookups[i].Name, a)
		}
	}
	<-time.After(time.Until(asked.Add(4 * time.Second))) // the late one has spoken
	s.reaches(t, s.inside, true, "203.0.113.7")
	s.reaches(t, s.inside, false, giveaway)
	if learned := s.learned(t, id); len(learned) != 1 || len(learned["203.0.113.7"]) == 0 {
		t.Errorf("learned %v", learned)
	}
	if n := s.Others[0].Asked(nil) + s.Others[1].Asked(nil); n != 0 {
		t.Errorf("another resolver was asked %d times", n)
	}
}

// serveLies answers over UDP until the test ends.
func serveLies(t *testing.T, ns *testenv.NS, at string, answer func(*dns.Msg, func(*dns.Msg))) {
	t.Helper()
	conn := ns.ListenPacket(t, "udp4", netip.AddrPortFrom(netip.MustParseAddr(at), 53).String())
	go func() { // ends with conn
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			query := new(dns.Msg)
			if query.Unpack(b[:n]) != nil {
				continue
			}
			answer(query, func(reply *dns.Msg) {
				if packed, err := reply.Pack(); err == nil {
					_, _ = conn.WriteTo(packed, from) // lost, as packets are
				}
			})
		}
	}()
}
