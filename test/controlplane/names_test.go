// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// upstream is who the policy says to ask. The workload asks testenv.ForeignResolver4, which is never to hear of it.
const upstream = "198.51.100.53"

// Names and what upstream says of them.
var namesZone = testenv.Zone{Records: []string{
	"allowed.example. 60 IN A 203.0.113.1",
	"one.allowed.example. 60 IN A 203.0.113.2",
	"two.allowed.example. 60 IN A 203.0.113.3",
	"other.example. 60 IN A 203.0.113.4",
}}

// names is an attached workload behind a veth that resolves, its daemon, and the control plane that decides.
type names struct {
	*testenv.World
	t        *testing.T
	daemon   *harness.Daemon
	plane    *plane
	inside   *testenv.Workload
	id       string
	upstream *testenv.Nameserver
}

// newNames attaches with a DnsConfig.
func newNames(t *testing.T, config string) *names {
	t.Helper()
	w, inside := newWorld(t)
	n := &names{World: w, t: t, inside: inside, upstream: testenv.ServeDNS(t, w.Outside, namesZone, upstream)}
	foreign := testenv.ServeDNS(t, w.Outside, testenv.Zone{}, testenv.ForeignResolver4)
	t.Cleanup(func() {
		if asked := foreign.Asked(nil); asked > 0 {
			t.Errorf("the resolver that the workload asked heard %d queries", asked)
		}
	})
	n.daemon, n.plane = start(t, w.Host, builtFromPublished)
	n.id = attach(t, n.daemon, n.plane, `{"mode": "POLICY_MODE_ALLOWLIST", "dns": `+config+`}`, "--interface", w.Link)
	return n
}

func (n *names) ask(name string) testenv.Answer {
	n.t.Helper()
	return n.within(testenv.Patience, name)
}

func (n *names) within(wait time.Duration, name string) testenv.Answer {
	n.t.Helper()
	return testenv.MustResolve(n.t, n.Workload, nil, testenv.Lookup{By: testenv.Dig, Server: testenv.ForeignResolver4, Name: name, Wait: wait})
}

// opens resolves a name to an address, which then is reachable.
func (n *names) opens(name, addr string) {
	n.t.Helper()
	n.resolves(name, addr)
	passes(n.t, n.inside, addr)
}

func (n *names) resolves(name, addr string) {
	n.t.Helper()
	if a := n.ask(name); !slices.Equal(a.Addrs, []netip.Addr{netip.MustParseAddr(addr)}) {
		n.t.Errorf("%s is %v, want %s:\n%s", name, a.Addrs, addr, a)
	}
}

// refuses shows that a name is refused, and that upstream hears nothing of it.
func (n *names) refuses(name string) {
	n.t.Helper()
	before := n.upstream.Asked(nil)
	if a := n.ask(name); a.Status != "NXDOMAIN" || a.Extended == "" {
		n.t.Errorf("%s is answered %q with EDE %q, want it refused:\n%s", name, a.Status, a.Extended, a)
	}
	if asked := n.upstream.Asked(nil) - before; asked > 0 {
		n.t.Errorf("%s was refused, and upstream asked %d times", name, asked)
	}
}

// fails shows that nobody decides a name, and that the resolver is told while it waits: for 5 s, and one for a machine
// that is busy.
func (n *names) fails(name string) {
	n.t.Helper()
	before := n.upstream.Asked(nil)
	if a := n.within(6*time.Second, name); a.Status != "SERVFAIL" {
		n.t.Errorf("%s is answered %q, want SERVFAIL:\n%s", name, a.Status, a)
	}
	if asked := n.upstream.Asked(nil) - before; asked > 0 {
		n.t.Errorf("%s failed, and upstream was asked %d times", name, asked)
	}
}

// command sends a command without a number, as published peers do, and waits until it is in force.
func (n *names) command(command, want string) {
	n.t.Helper()
	n.plane.Send(`{"id": %q, %s}`, n.id, command)
	await(n.t, n.daemon, n.id, command, func(s harness.Shown) bool { return words(s.Policy) == want })
}

// Each command of DNS takes effect for names, and for the addresses that they had opened.
func TestCommandsForNames(t *testing.T) {
	t.Parallel()
	n := newNames(t, `{"mode": "DNS_MODE_ALLOWLIST", "upstream_servers": ["`+upstream+`"], "allow_domains": [{"domain": "one.allowed.example"}]}`)
	const (
		before = "allowlist, dns allowlist, allow one.allowed.example"
		after  = ", upstreams " + upstream + ":53"
	)
	n.opens("one.allowed.example", "203.0.113.2")
	n.refuses("two.allowed.example")
	n.refuses("allowed.example")
	blocked(t, n.inside, "203.0.113.3")

	n.command(`"allow_domain": {"domain": "Allowed.Example.", "include_subdomains": true}`, before+" allowed.example and below"+after)
	n.opens("allowed.example", "203.0.113.1")
	n.opens("two.allowed.example", "203.0.113.3")

	n.command(`"deny_domain": {"domain": "two.allowed.example"}`, before+" allowed.example and below, deny two.allowed.example"+after)
	blocked(t, n.inside, "203.0.113.3")
	n.refuses("two.allowed.example")
	passes(t, n.inside, "203.0.113.1")

	n.command(`"remove_domain": "two.allowed.example"`, before+" allowed.example and below"+after)
	blocked(t, n.inside, "203.0.113.3") // until it is asked for again
	n.opens("two.allowed.example", "203.0.113.3")

	n.command(`"remove_domain": "allowed.example"`, before+after)
	for _, addr := range []string{"203.0.113.1", "203.0.113.3"} {
		blocked(t, n.inside, addr)
	}
	n.refuses("allowed.example")
	passes(t, n.inside, "203.0.113.2")

	n.command(`"allow_domain": {"domain": "*.allowed.example"}`, before+" *.allowed.example"+after)
	n.opens("two.allowed.example", "203.0.113.3")
	n.refuses("allowed.example")
	n.refuses("other.example")

	const denylist = "allowlist, dns denylist, allow one.allowed.example *.allowed.example"
	n.command(`"set_dns_mode": {"mode": "DNS_MODE_DENYLIST"}`, denylist+after)
	n.opens("other.example", "203.0.113.4")
	n.command(`"deny_domain": {"domain": "other.example"}`, denylist+", deny other.example"+after)
	blocked(t, n.inside, "203.0.113.4")
	n.refuses("other.example")

	n.command(`"set_mode": {"mode": "POLICY_MODE_BLOCK_ALL"}`,
		"block-all, dns denylist, allow one.allowed.example *.allowed.example, deny other.example"+after)
	n.refuses("one.allowed.example")
	blocked(t, n.inside, "203.0.113.2")

	// All of it at once.
	n.command(`"bulk_update": {"mode": "POLICY_MODE_ALLOWLIST", "dns": {"mode": "DNS_MODE_ALLOWLIST",
		"upstream_servers": ["`+upstream+`"], "allow_domains": [{"domain": "other.example"}]}}`, "allowlist, dns allowlist, allow other.example"+after)
	n.opens("other.example", "203.0.113.4")
	n.refuses("one.allowed.example")
	blocked(t, n.inside, "203.0.113.2")

	// Without DNS nothing is answered, nothing is learned, and what was learned is over.
	n.command(`"set_dns_mode": {"mode": "DNS_MODE_DISABLED"}`, "allowlist, dns disabled, allow other.example"+after)
	blocked(t, n.inside, "203.0.113.4")
	if a := testenv.MustResolve(t, n.Workload, nil, testenv.Lookup{
		By: testenv.Dig, Server: testenv.ForeignResolver4, Name: "other.example", Wait: time.Second,
	}); a.Status != "timed out" {
		t.Errorf("with DNS disabled and no rule for the resolver: %q\n%s", a.Status, a)
	}
}

// In proxy mode the control plane decides each query, and no answer from it is none for the workload.
func TestProxyMode(t *testing.T) {
	t.Parallel()
	n := newNames(t, `{"mode": "DNS_MODE_PROXY", "upstream_servers": ["`+upstream+`"]}`)
	p := n.plane

	p.Answer("given.example.", `{"allow": true, "add_to_filter": true, "ips": ["203.0.113.9", "2001:db8:200::9"], "ttl_seconds": 60}`)
	n.opens("Given.Example", "203.0.113.9")
	if queries, want := p.Queries(), []dnsQuery{{n.id, "Given.Example.", "A"}}; !slices.Equal(queries, want) {
		t.Errorf("the control plane was asked %v, want %v", queries, want)
	}
	if asked := n.upstream.Asked(nil); asked > 0 {
		t.Errorf("upstream was asked %d times for what the control plane gave", asked)
	}

	p.Answer("other.example.", `{"allow": true, "add_to_filter": true}`)
	n.opens("other.example", "203.0.113.4")

	p.Answer("allowed.example.", `{"allow": true}`)
	n.resolves("allowed.example", "203.0.113.1")
	blocked(t, n.inside, "203.0.113.1")

	p.Answer("one.allowed.example.", `{"add_to_filter": true, "ips": ["203.0.113.2"], "ttl_seconds": 60}`)
	n.refuses("one.allowed.example")
	blocked(t, n.inside, "203.0.113.2")

	p.Answer("broken.example.", `{"allow": true, "add_to_filter": true, "ips": ["203.0.113.5", "nonsense"]}`)
	n.fails("broken.example")
	blocked(t, n.inside, "203.0.113.5")
	n.fails("error.example") // the test has no answer for it

	p.Answer("hanging.example.", "")
	n.fails("hanging.example")
	n.opens("given.example", "203.0.113.9") // nobody waits behind it

	p.Stop()
	n.fails("given.example")
	passes(t, n.inside, "203.0.113.9") // learned before

	p.Start()
	p.Connect()
	p.Answer("given.example.", `{"allow": true, "ips": ["203.0.113.8"], "ttl_seconds": 60}`)
	n.resolves("given.example", "203.0.113.8")
	blocked(t, n.inside, "203.0.113.8")

	// Another mode cuts what the control plane had decided.
	n.command(`"set_dns_mode": {"mode": "DNS_MODE_ALLOWLIST"}`, "allowlist, dns allowlist, upstreams "+upstream+":53")
	blocked(t, n.inside, "203.0.113.9")
	n.refuses("given.example")
}

// The address of the attachment's DNS server and the counts of its queries are told in the published fields.
func TestDNSAddressAndCounters(t *testing.T) {
	t.Parallel()
	w, _ := newWorld(t)
	testenv.ServeDNS(t, w.Outside, namesZone, upstream)
	d, p := start(t, w.Host, builtFromPublished)
	attached := d.Go(t, "attach", "--interface", w.Link, "-o", "json")
	subscribed := p.Subscribed()
	p.Send(`{"id": %q, "subscribed_ack": {"mode": "POLICY_MODE_ALLOWLIST", "dns": {"mode": "DNS_MODE_ALLOWLIST",
		"upstream_servers": ["`+upstream+`"], "allow_domains": [{"domain": "other.example"}]}}}`, subscribed.ID)
	var answer struct {
		DNSAddress  string `json:"dns_address"`
		Nameservers []string
	}
	r := <-attached
	if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	if _, err := netip.ParseAddrPort(answer.DNSAddress); err != nil || subscribed.DNSAddress != answer.DNSAddress || len(answer.Nameservers) == 0 {
		t.Errorf("Subscribed has dns_address %q, attach %+v", subscribed.DNSAddress, answer)
	}

	for _, name := range []string{"other.example", "one.example", "two.example"} {
		testenv.MustResolve(t, w.Workload, nil, testenv.Lookup{By: testenv.Dig, Server: testenv.ForeignResolver4, Name: name})
	}
	var list struct {
		Attachments []struct {
			DNSAddress string `json:"dns_address"`
			DNSMode    string `json:"dns_mode"`
			Allowed    uint64 `json:"dns_queries_allowed"`
			Blocked    uint64 `json:"dns_queries_blocked"`
		}
	}
	testenv.Eventually(t, "counted queries", func() bool {
		if err := json.Unmarshal([]byte(d.Must(t, "list", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		return len(list.Attachments) == 1 && list.Attachments[0].Allowed == 1 && list.Attachments[0].Blocked == 2
	})
	if a := list.Attachments[0]; a.DNSAddress != answer.DNSAddress || a.DNSMode != "allowlist" {
		t.Errorf("list has %+v", a)
	}
	if !strings.Contains(d.Must(t, "policy", "show", subscribed.ID), "203.0.113.4 (other.example)") {
		t.Errorf("policy show does not list what was learned:\n%s", d.Must(t, "policy", "show", subscribed.ID))
	}
}
