// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// TestSameClientAddress: two workloads with one address and one port, as with overlapping networks of tenants, are told
// apart by their devices, each under its own rules.
func TestSameClientAddress(t *testing.T) {
	zone := testenv.Zone{Records: []string{
		"a.example. 60 IN A 203.0.113.1", "a.example. 60 IN AAAA 2001:db8:200::1",
		"b.example. 60 IN A 203.0.113.2", "b.example. 60 IN AAAA 2001:db8:200::2",
	}}
	s := newNamed(t, testenv.VethDevice, zone)
	second := s.twin(t)
	for _, tenant := range []string{"a", "b"} {
		s.Policy(t, tenant+".yaml", "match: {tenant: "+tenant+"}\n"+allowing(tenant+".example"))
	}
	s.Start(t)
	tenants := []struct {
		place
		own, other string
	}{{s.inside, "a", "b"}, {second, "b", "a"}}
	for _, tenant := range tenants {
		s.attach(t, tenant.place, "--metadata", "tenant="+tenant.own)
	}
	for _, ipv6 := range []bool{false, true} {
		from, server, addrs := s.Addr4, public, map[string]string{"a": "203.0.113.1", "b": "203.0.113.2"}
		if ipv6 {
			from, server, addrs = s.Addr6, public6, map[string]string{"a": "2001:db8:200::1", "b": "2001:db8:200::2"}
		}
		for _, overTCP := range []bool{false, true} {
			// At the same time, from the same port.
			results := make(chan error, len(tenants))
			for _, tenant := range tenants {
				go func() {
					results <- func() error {
						for name, want := range map[string]string{tenant.own: addrs[tenant.own], tenant.other: ""} {
							l := testenv.Lookup{By: testenv.Dig, Server: server, Name: name + ".example", IPv6: ipv6, TCP: overTCP}
							if !overTCP {
								l.From = netip.AddrPortFrom(from, 40053) // a TCP port is not free again at once
							}
							a, err := testenv.Resolve(t, tenant.ns, nil, l)
							if err != nil {
								return err
							}
							if want == "" && a.Status != "NXDOMAIN" || want != "" && !sameAddrs(a.Addrs, want) {
								return fmt.Errorf("tenant %s asks for %s: %s", tenant.own, name, a)
							}
						}
						return nil
					}()
				}()
			}
			for range tenants {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
		}
		// Answers from outside have one way back, so only what arrives there is looked at.
		for _, tenant := range tenants {
			probe := testenv.Probe{Kind: testenv.UDPSendto, Count: 3}
			for _, name := range []string{tenant.other, tenant.own} {
				probe.To = netip.AddrPortFrom(netip.MustParseAddr(addrs[name]), 9)
				before := s.Arrived.Sum(t, matches(probe)).Count
				tenant.Probe(t, probe)
				if name == tenant.own {
					s.Arrived.Await(t, before+3, matches(probe))
					continue
				}
				s.settle(t, tenant.Workload)
				if n := s.Arrived.Sum(t, matches(probe)).Count - before; n != 0 {
					t.Errorf("tenant %s sends %d packets to what the other has learned", tenant.own, n)
				}
			}
		}
	}
	s.nobodyElseAsked(t)
}

// twin is a second workload with the addresses of the first, behind a device of its own.
func (s *named) twin(t *testing.T) place {
	t.Helper()
	ns := testenv.NewNS(t)
	gateways := []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(gateway), 24), netip.PrefixFrom(netip.MustParseAddr(gateway6), 64)}
	testenv.Veth(t, testenv.End{NS: s.Host, Name: "work1", Addrs: gateways},
		testenv.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(s.Addr4, 24), netip.PrefixFrom(s.Addr6, 64)}})
	for _, key := range []string{"all", "work0", "work1"} {
		s.Host.Sysctl(t, "ipv4/conf/"+key+"/rp_filter", "0")
	}
	ns.Route(t, netip.MustParsePrefix("0.0.0.0/0"), gateways[0].Addr(), "eth0")
	ns.Route(t, netip.MustParsePrefix("::/0"), gateways[1].Addr(), "eth0")
	return place{testenv.StartWorkload(t, ns, nil), "twin", ns, nil, []string{"--interface", "work1"}}
}

// TestNestedNames: a name has to be allowed by every attachment around the one who asks, and each learns it.
func TestNestedNames(t *testing.T) {
	zone := testenv.Zone{Records: []string{"both.example. 60 IN A 203.0.113.1", "outer.example. 60 IN A 203.0.113.2", "inner.example. 60 IN A 203.0.113.3"}}
	s := newNamed(t, testenv.VethDevice, zone)
	outer := testenv.NewCgroup(t)
	inner := outer.Child(t, "inner")
	ids := map[string]string{}
	s.Policy(t, "outer.yaml", "match: {which: outer}\n"+allowing("both.example", "outer.example"))
	s.Policy(t, "inner.yaml", "match: {which: inner}\n"+allowing("both.example", "inner.example"))
	s.Start(t)
	for which, cg := range map[string]*testenv.Cgroup{"outer": outer, "inner": inner} {
		ids[which] = s.Attach(t, "--cgroup", cg.Path, "--metadata", "which="+which)
	}
	p, around := s.newJob(t, inner.Child(t, "leaf"), "inner"), s.newJob(t, outer.Child(t, "beside"), "outer")
	for _, server := range []string{public, public6, localStub} {
		if a := s.look(t, p, testenv.Lookup{Server: server, Name: "both.example"}); !sameAddrs(a.Addrs, "203.0.113.1") {
			t.Errorf("both allow, by %s: %s", server, a)
		}
		for _, name := range []string{"outer.example", "inner.example"} {
			if a := s.look(t, p, testenv.Lookup{Server: server, Name: name}); a.Status != "NXDOMAIN" {
				t.Errorf("one allows %s, by %s: %s", name, server, a)
			}
		}
	}
	s.reaches(t, p, true, "203.0.113.1")
	s.reaches(t, around, true, "203.0.113.1") // the outer one has learned it as well
	s.reaches(t, p, false, "203.0.113.2", "203.0.113.3")
	for which, id := range ids {
		if learned := s.learned(t, id); len(learned) != 1 || len(learned["203.0.113.1"]) == 0 {
			t.Errorf("%s: policy show: %v", which, learned)
		}
	}

	// What only the outer one learns is not the inner one's.
	s.resolves(t, around, "outer.example", "203.0.113.2")
	s.reaches(t, around, true, "203.0.113.2")
	s.reaches(t, p, false, "203.0.113.2")
	// Without the inner one, the outer one decides alone.
	s.Must(t, "detach", "--id", ids["inner"])
	s.resolves(t, p, "outer.example", "203.0.113.2")
	s.reaches(t, p, true, "203.0.113.2")
	if a := s.dig(t, p, "inner.example"); a.Status != "NXDOMAIN" {
		t.Errorf("inner.example: %s", a)
	}
	s.nobodyElseAsked(t)
}

// TestDNSAddress: an attachment can be asked under its own rules at an address of its own, by the host, and not by
// other attachments.
func TestDNSAddress(t *testing.T) {
	zone := testenv.Zone{Numbered: map[string][]netip.Prefix{"a.example.": matrixPrefixes, "b.example.": matrixPrefixes}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "a.yaml", "match: {tenant: a}\n"+allowing("*.a.example"))
	s.Policy(t, "b.yaml", "match: {tenant: b}\n"+allowing("*.b.example"))
	s.Start(t)
	type attached struct {
		ID          string   `json:"id"`
		DNSAddress  string   `json:"dns_address"`
		Nameservers []string `json:"nameservers"`
	}
	host := place{s.OnHost, "host", s.Host, nil, nil}
	tenants := map[string]place{"a": s.inside, "b": s.job}
	addresses := map[string]netip.AddrPort{}
	for tenant, p := range tenants {
		var a attached
		text := s.attach(t, p, "--metadata", "tenant="+tenant, "-o", "json")
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		address, err := netip.ParseAddrPort(a.DNSAddress)
		if err != nil {
			t.Fatalf("dns_address: %v", err)
		}
		addresses[tenant] = address
		if len(a.Nameservers) == 0 {
			t.Errorf("no nameservers: %s", text)
		}
		for _, server := range a.Nameservers {
			if got := s.look(t, p, testenv.Lookup{By: testenv.Glibc, Server: server, Name: "n1." + tenant + ".example"}); !sameAddrs(got.Addrs, "203.0.113.1") {
				t.Errorf("nameserver %s: %s", server, got)
			}
		}
		for _, listed := range s.List(t) {
			if listed.ID == a.ID && listed.DNSAddress != a.DNSAddress {
				t.Errorf("list: dns_address %s, want %s", listed.DNSAddress, a.DNSAddress)
			}
		}
	}
	if addresses["a"] == addresses["b"] {
		t.Errorf("both have %s", addresses["a"])
	}
	for tenant, other := range map[string]string{"a": "b", "b": "a"} {
		for _, overTCP := range []bool{false, true} {
			l := testenv.Lookup{Server: addresses[tenant].Addr().String(), Port: addresses[tenant].Port(), Name: "n2." + tenant + ".example", TCP: overTCP}
			if a := s.look(t, host, l); !sameAddrs(a.Addrs, "203.0.113.2") {
				t.Errorf("dns_address of %s: %s", tenant, a)
			}
			l.Name = "n2." + other + ".example"
			if a := s.look(t, host, l); a.Status != "NXDOMAIN" || !strings.Contains(a.Extended, "Blocked") {
				t.Errorf("dns_address of %s, asked for what it does not allow: %s", tenant, a)
			}
		}
		s.reaches(t, tenants[tenant], true, "203.0.113.2") // learned for it, whoever asked
	}
	own := testenv.Lookup{Server: addresses["b"].Addr().String(), Port: addresses["b"].Port(), Name: "n3.b.example"}
	if a := s.look(t, s.job, own); !sameAddrs(a.Addrs, "203.0.113.3") {
		t.Errorf("its own dns_address: %s", a)
	}
	foreign := testenv.Lookup{Server: addresses["a"].Addr().String(), Port: addresses["a"].Port(), Name: "n3.a.example", Wait: time.Second}
	for _, overTCP := range []bool{false, true} {
		foreign.TCP = overTCP
		if a := s.look(t, s.job, foreign); len(a.Addrs) != 0 || a.Unknown {
			t.Errorf("the dns_address of another attachment: %s", a)
		}
	}
	s.nobodyElseAsked(t)
}
