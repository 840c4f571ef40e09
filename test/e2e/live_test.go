// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// alwaysAllowed is in every policy here, so that settle has a packet that passes.
const alwaysAllowed = "198.51.100.1, 2001:db8:100::1"

// TestRuleChangeCutsOpenConnections of a workload behind a device and of one in a cgroup, at once and without the peer
// or the workload doing anything.
func TestRuleChangeCutsOpenConnections(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	job := testenv.StartWorkload(t, s.Host, cg)
	s.Policy(t, "policy.yaml", fmt.Sprintf("mode: allowlist\nallow: [%s, 203.0.113.0/24, 2001:db8:200::/48]\n", alwaysAllowed))
	s.Start(t)
	ids := []string{s.Attach(t, "--interface", s.Link), s.Attach(t, "--cgroup", cg.Path)}

	type open struct {
		*testenv.Conn
		from *testenv.Workload
		name string
		to   netip.AddrPort
	}
	var conns []open
	for name, w := range map[string]*testenv.Workload{"interface": s.Inside, "cgroup": job} {
		for _, to := range []string{"203.0.113.9:7", "[2001:db8:200::9]:7"} {
			to := netip.MustParseAddrPort(to)
			conns = append(conns, open{w.Connect(t, to), w, name, to})
		}
	}
	echo := func(when string) {
		t.Helper()
		for _, c := range conns {
			if !c.Echoes(t, testenv.Patience) {
				t.Errorf("%s: connection of the %s to %s: no echo", when, c.name, c.to)
			}
		}
	}
	cut := func(when string) {
		t.Helper()
		for _, c := range conns {
			// What was sent before has arrived.
			s.settle(t, c.from)
			match := matches(testenv.Probe{Kind: testenv.TCP, To: c.to})
			before := s.Arrived.Sum(t, match).Count
			if c.Echoes(t, 50*time.Millisecond) {
				t.Errorf("%s: connection of the %s to %s goes on", when, c.name, c.to)
			}
			s.settle(t, c.from)
			if n := s.Arrived.Sum(t, match).Count - before; n != 0 {
				t.Errorf("%s: %d packets of the %s's connection to %s arrived", when, n, c.name, c.to)
			}
		}
	}
	replace := func(mode, allow, deny string) {
		t.Helper()
		s.Policy(t, "policy.yaml", fmt.Sprintf("mode: %s\nallow: [%s]\ndeny: [%s]\n", mode, allow, deny))
		for _, id := range ids {
			testenv.Eventually(t, "policy in force", func() bool {
				p := s.Show(t, id).Policy
				return p.Mode.String() == mode && len(p.Allow) == len(list(allow)) && len(p.Deny) == len(list(deny))
			})
		}
	}

	const both = ", 203.0.113.0/24, 2001:db8:200::/48"
	echo("at first")
	replace("allowlist", alwaysAllowed, "")
	cut("allow taken away")
	replace("allowlist", alwaysAllowed+both, "")
	echo("allow given back") // TCP repeats what was lost
	replace("allowlist", alwaysAllowed+both, "203.0.113.9, 2001:db8:200::9/128")
	cut("deny inside allow")
	replace("denylist", "", "203.0.113.77")
	echo("denylist that names another")
	replace("denylist", "", "203.0.113.9/32, 2001:db8:200::/64")
	cut("denylist")
	replace("disabled", "", "")
	echo("disabled")
}

func list(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ", "), func(s string) bool { return s == "" })
}

// TestBlockAllFromOutside cuts also what came from outside, which a reply flow permits otherwise.
func TestBlockAllFromOutside(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	s.Inside.Serve(t, servedPort)
	s.Policy(t, "policy.yaml", "mode: allowlist\n")
	s.Start(t)
	id := s.Attach(t, "--interface", s.Link)
	outside := testenv.StartWorkload(t, s.Outside, nil)
	conn := outside.Connect(t, netip.AddrPortFrom(s.Addr4, servedPort))
	if !conn.Echoes(t, testenv.Patience) {
		t.Error("from outside: no echo")
	}
	change := func(text, mode string) {
		t.Helper()
		s.Policy(t, "policy.yaml", text)
		testenv.Eventually(t, mode, func() bool { return s.Show(t, id).Policy.Mode.String() == mode })
	}
	change("mode: block-all\n", "block-all")
	if conn.Echoes(t, 50*time.Millisecond) {
		t.Error("block-all: the connection goes on")
	}
	change("mode: disabled\n", "disabled")
	if !conn.Echoes(t, testenv.Patience) {
		t.Error("disabled: no echo")
	}
	// The flow has ended with block-all; a new one begins only with a new connection.
	change("mode: allowlist\n", "allowlist")
	if conn.Echoes(t, 50*time.Millisecond) {
		t.Error("allowlist again: the connection goes on without a flow")
	}
	if !outside.Connect(t, netip.AddrPortFrom(s.Addr4, servedPort)).Echoes(t, testenv.Patience) {
		t.Error("new connection from outside: no echo")
	}
	s.Policy(t, "policy.yaml", "mode: allowlist\nreplies: deny\n")
	testenv.Eventually(t, "replies denied", func() bool { return s.Show(t, id).Policy.Replies.String() == "deny" })
	p := testenv.Probe{Kind: testenv.TCP, To: netip.AddrPortFrom(s.Addr4, servedPort), Wait: 50 * time.Millisecond}
	if out := outside.Probe(t, p); out.Answered {
		t.Errorf("replies: deny: %s", out)
	}
}

// TestBrokenFileKeepsTheLastGoodState, says so, and does not stop what the file says when it is mended.
func TestBrokenFileKeepsTheLastGoodState(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	s.Policy(t, "table.yaml", tablePolicy)
	s.Start(t)
	id := s.Attach(t, "--interface", s.Link)
	if problems := s.Status(t).Problems; len(problems) != 0 {
		t.Fatalf("problems before: %v", problems)
	}
	for name, broken := range map[string]struct{ text, complaint string }{
		"YAML":        {"mode: [allowlist\n", "policy table.yaml"},
		"key":         {"mode: allowlist\nalow: []\n", "alow"},
		"mode":        {"mode: allowlst\n", "allowlst"},
		"host bits":   {"mode: allowlist\nallow: [203.0.113.0/24, 10.0.0.1/8]\n", "did you mean 10.0.0.0/8?"},
		"empty":       {"", "policy table.yaml"},
		"two of them": {"mode: disabled\n---\nmode: disabled\n", "policy table.yaml"},
		"proxied DNS": {"mode: disabled\ndns: {mode: proxy}\n", "proxy"},
		"source":      {"mode: allowlist\nsource: [eth0]\n", "eth0"},
	} {
		s.Policy(t, "table.yaml", broken.text)
		testenv.Eventually(t, name+" shows in status", func() bool {
			problems := s.Status(t).Problems
			return len(problems) == 1 && strings.Contains(problems[0], "table.yaml") && strings.Contains(problems[0], broken.complaint)
		})
		if shown := s.Show(t, id); len(shown.Policy.Allow) != 4 || len(shown.Policy.Deny) != 2 {
			t.Errorf("%s: in force is %+v", name, shown.Policy)
		}
	}
	s.check(t, s.Inside, table, silent)
	s.Policy(t, "table.yaml", "mode: disabled\n")
	testenv.Eventually(t, "no problem", func() bool { return len(s.Status(t).Problems) == 0 })
	testenv.Eventually(t, "disabled", func() bool { return s.Show(t, id).Policy.Mode.String() == "disabled" })
	s.check(t, s.Inside, all(true), nil)
}
