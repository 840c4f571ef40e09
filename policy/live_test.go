// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseDestination(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.7":            "192.0.2.7",
		"2001:db8::1":          "2001:db8::1",
		"[2001:db8::1]":        "2001:db8::1",
		"::ffff:192.0.2.7":     "192.0.2.7",
		"192.0.2.7:443":        "192.0.2.7:443/tcp",
		"[2001:db8::1]:53/udp": "[2001:db8::1]:53/udp",
		"PyPI.org.":            "pypi.org",
		"pypi.org:443/udp":     "pypi.org:443/udp",
		"192.0.2.300":          "",
		"fe80::1%eth0":         "",
		"*.pypi.org":           "",
		"https://pypi.org":     "",
		"pypi.org/udp":         "",
		"pypi..org":            "",
		"":                     "",
	} {
		q, err := ParseDestination(text)
		if want == "" && err == nil || want != "" && (err != nil || q.String() != want) {
			t.Errorf("%q: got %v, %v, want %q", text, q, err, want)
		}
	}
}

func TestExplainLive(t *testing.T) {
	prefixes := func(texts ...string) (rules []Rule) {
		for _, text := range texts {
			r, _, err := Parse(text)
			if err != nil || r == nil {
				t.Fatal(text, err)
			}
			rules = append(rules, *r)
		}
		return rules
	}
	boot := time.Hour
	over := prefixes("203.0.113.0/24")[0]
	over.Deadline = boot - 1
	web := []Ports{{First: 443, Last: 443, Protocol: TCP}}
	allow := &Policy{
		Mode:  ModeAllowlist,
		Allow: append(prefixes("10.0.0.0/8", "192.0.2.1:853", "192.0.2.0/24:80"), over),
		Deny:  prefixes("10.9.0.0/16", "198.51.100.66"),
		DNS:   DNS{Mode: DNSAllowlist, Allow: []DomainRule{{Domain: "*.pypi.org", Ports: web}, {Domain: "db.corp"}}},
	}
	proxy := *allow
	proxy.DNS = DNS{Mode: DNSProxy}
	audited := *allow
	audited.Audit = true
	deny := &Policy{Mode: ModeDenylist, Deny: prefixes("10.9.0.0/16"), DNS: DNS{Mode: DNSDisabled}}
	lo := &Policy{Mode: ModeAllowlist, Allow: prefixes("127.0.0.1:80"), DNS: DNS{Mode: DNSDisabled}}
	open, closed := *lo, *lo
	open.Loopback, closed.Loopback = LoopbackAllow, LoopbackDeny
	guard := &Guard{Deny: prefixes("169.254.0.0/16"), Allow: prefixes("10.9.9.9")}
	live := Live{Guard: guard, Boot: boot, Opened: []Opened{
		{Addr: netip.MustParseAddr("198.51.100.7"), Names: []string{"files.pypi.org"}, Ports: web, Remaining: 25 * time.Second},
		{Addr: netip.MustParseAddr("198.51.100.66"), Names: []string{"files.pypi.org"}, Ports: web, Remaining: 25 * time.Second},
		{Addr: netip.MustParseAddr("198.51.100.8"), Names: []string{"db.corp"}, Remaining: time.Minute},
	}}
	cgroup := live
	cgroup.Cgroup = true
	for _, c := range []struct {
		name   string
		policy *Policy
		live   Live
		packet string
		want   Action
		rule   string
		reason string // is in it
	}{
		{"a rule", allow, live, "10.1.2.3:443", Allow, "10.0.0.0/8", "allow rule 1"},
		{"the longest prefix", allow, live, "10.9.2.3:443", Deny, "10.9.0.0/16", "deny rule 1"},
		{"the guard denies", allow, live, "169.254.169.254:80", Deny, "169.254.0.0/16", "guard deny rule 1"},
		{"the guard allows", allow, live, "10.9.9.9:80", Allow, "10.9.9.9/32", "guard allow rule 1"},
		{"no rule", allow, live, "203.0.114.1:80", Deny, "", "no rule matches"},
		{"a rule that is over", allow, live, "203.0.113.1:80", Deny, "", "no rule matches"},
		{"learned", allow, live, "198.51.100.7:443", Allow, "*.pypi.org ports 443/tcp", "learned from files.pypi.org for ports 443/tcp (25s left)"},
		{"learned for another port", allow, live, "198.51.100.7:80", Deny, "", "learned from files.pypi.org for ports 443/tcp"},
		{"learned, without ports", allow, live, "198.51.100.7", Deny, "", "learned from"},
		{"learned for all, without ports", allow, live, "198.51.100.8", Allow, "db.corp", "learned from db.corp (1m0s left)"},
		{"a rule outranks what is learned", allow, live, "198.51.100.66:443", Deny, "198.51.100.66/32", "deny rule 2"},
		{"an embedded address", allow, live, "[64:ff9b::198.51.100.7]:443", Deny, "", "no rule matches"},
		{"a query", allow, live, "192.0.2.1:53/udp", Deny, "", "explain a name"},
		{"names past the filter", allow, live, "10.1.2.3:853", Deny, "", "only a rule that names the port"},
		{"names by a rule", allow, live, "192.0.2.1:853", Allow, "192.0.2.1/32 ports 853", "allow rule 2"},
		{"without ports", allow, live, "192.0.2.1", Deny, "", "no rule matches"},
		{"loopback of an interface", lo, live, "127.0.0.1:80", Deny, "", "by lo only"},
		{"loopback by a rule", lo, cgroup, "127.0.0.1:80", Allow, "127.0.0.1/32 ports 80", "allow rule 1"},
		{"loopback own", lo, cgroup, "127.0.0.1:81", Deny, "", "sockets of the attachment"},
		{"loopback allow", &open, cgroup, "127.0.0.1:81", Allow, "", "loopback allow"},
		{"loopback deny", &closed, cgroup, "127.0.0.1:80", Deny, "", "loopback deny"},
		{"a denylist", deny, live, "203.0.113.1:853", Allow, "", "no rule matches"},
		{"block-all", BlockAll(), live, "10.1.2.3:443", Deny, "", "mode block-all"},
		{"block-all, the guard allows", BlockAll(), live, "10.9.9.9:443", Allow, "10.9.9.9/32", "guard"},
		{"audit", &audited, live, "203.0.114.1:80", Allow, "", "in audit it passes"},
		{"audit, the guard denies", &audited, live, "169.254.169.254:80", Deny, "169.254.0.0/16", "guard"},
		{"a name", allow, live, "files.pypi.org", Allow, "*.pypi.org ports 443/tcp", "learned for ports 443/tcp"},
		{"what it has opened", allow, live, "files.pypi.org:443", Allow, "*.pypi.org ports 443/tcp", "learned: 198.51.100.7 for ports 443/tcp (25s left); 198.51.100.66"},
		{"what a rule denies of it", allow, live, "files.pypi.org:443", Allow, "*.pypi.org ports 443/tcp", "denied: deny rule 2"},
		{"a name for another port", allow, live, "files.pypi.org:80", Deny, "*.pypi.org ports 443/tcp", "443/tcp only"},
		{"a refused name", allow, live, "example.com:443", Deny, "", "the name is refused"},
		{"proxy", &proxy, live, "example.com:443", Deny, "", "the control plane decides each query"},
		{"proxy, learned", &proxy, live, "files.pypi.org:443", Allow, "", "the control plane decides each query; learned: 198.51.100.7"},
		{"block-all, a name", BlockAll(), live, "pypi.org:443", Deny, "", "mode block-all"},
	} {
		q, err := ParseDestination(c.packet)
		if err != nil {
			t.Fatal(err)
		}
		got := c.policy.ExplainLive(c.live, q)
		if got.Action != c.want || got.Rule != c.rule || !strings.Contains(got.Reason, c.reason) || strings.Contains(got.Reason, "\n") {
			t.Errorf("%s: got %v by %q: %s\nwant %v by %q: …%s…", c.name, got.Action, got.Rule, got.Reason, c.want, c.rule, c.reason)
		}
	}
}
