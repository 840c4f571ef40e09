// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/netfence/netfence/internal/testenv"
)

// A control plane that knows our additions numbers its commands and learns what became of each.
func TestResults(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromOurs)
	id := attachCgroup(t, d, p)

	for _, step := range []struct {
		command  string
		code     string
		revision string // in force after it
		field    string // of the first violation
	}{
		{`"revision": "r1", "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "10.0.0.0/8"}]}`, "APPLIED", "r1", ""},
		{`"revision": "r2", "base_revision": "r1", "allow_cidr": {"cidr": "192.0.2.0/24"}`, "APPLIED", "r2", ""},
		{`"revision": "r3", "base_revision": "r1", "allow_cidr": {"cidr": "192.0.3.0/24"}`, "STALE", "r2", ""},
		{`"revision": "r3", "allow_cidr": {"cidr": "192.0.2.0/33"}`, "REFUSED", "r2", "allow_cidr.cidr"},
		{`"revision": "r3", "bulk_update": {}`, "REFUSED", "r2", "bulk_update.mode"},
		{`"revision": "r3", "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST", "source": ["eth0"]}`, "REFUSED", "r2", "bulk_update.source[0]"},
		{`"use_policy": {"name": "agents"}`, "UNKNOWN", "r2", "use_policy"},
		// Host bits are masked, and the result says so.
		{`"revision": "r4", "allow_cidr": {"cidr": "192.0.2.77/24"}`, "APPLIED", "r4", "allow_cidr.cidr"},
	} {
		checkResult(t, p, id, step.command, step.code, step.revision, step.field)
	}
	if got, want := words(d.Show(t, id).Policy), "allowlist, allow 10.0.0.0/8 192.0.2.0/24, dns disabled"; got != want {
		t.Errorf("policy %s, want %s", got, want)
	}
	if got := d.Show(t, id).Applied.Revision; got != "r4" {
		t.Errorf("policy show has revision %q, want r4", got)
	}

	// What is in force goes with the next SyncRequest, so that only what differs has to be sent.
	p.End(codes.Unavailable)
	request := p.Connect()
	if len(request.Attachments) != 1 || request.Attachments[0].Applied == nil || request.Attachments[0].Applied.Revision != "r4" {
		t.Errorf("SyncRequest has %+v, want revision r4", request.Attachments)
	}
	// Who does not number a command does not know what became of it: the revision says nothing any more.
	p.Send(`{"id": %q, "revision": "r5", "deny_cidr": {"cidr": "10.9.0.0/16"}}`, id)
	checkResult(t, p, id, `"base_revision": "r4", "deny_cidr": {"cidr": "10.8.0.0/16"}`, "STALE", "", "")

	d.Must(t, "detach", "--id", id)
	if got := p.Unsubscribed(); got.ID != id || got.Reason != reasonDetached {
		t.Errorf("got %+v, want DETACHED", got)
	}
	checkResult(t, p, id, `"set_mode": {"mode": "POLICY_MODE_DISABLED"}`, "UNKNOWN", "", "")
	if got := p.Unsubscribed(); got.ID != id || got.Reason != reasonError {
		t.Errorf("got %+v, want ERROR", got)
	}
}

// What of DNS is not in force cannot be asked for, and the answer names the field.
func TestResultsOfDNS(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromOurs)
	id := attachCgroup(t, d, p)
	const whole = `"revision": "r1", "bulk_update": {"mode": "POLICY_MODE_ALLOWLIST", "dns": `
	for _, step := range []struct{ command, code, revision, field string }{
		{whole + `{"mode": "DNS_MODE_ALLOWLIST", "refuse_with": "REFUSE_CODE_REFUSED",
			"forward": [{"zone": "corp", "to": ["192.0.2.53"]}],
			"allow_domains": [{"domain": "pypi.org", "ports": [{"first": 443}], "private": true}]}}`, "APPLIED", "r1", ""},
		{whole + `{"mode": "DNS_MODE_ALLOWLIST", "forward": [{"zone": "a", "to": ["192.0.2.53"]}, {"zone": "corp", "original": true}],
			"allow_domains": [{"domain": "pypi.org", "ports": [{"first": 443}]}]}}`, "APPLIED", "r1", ""},
		{whole + `{"mode": "DNS_MODE_ALLOWLIST", "deny_domains": [{"domain": "pypi.org", "ports": [{"first": 443}]}]}}`,
			"REFUSED", "r1", "bulk_update.dns.deny_domains[0].ports"},
		{whole + `{"mode": "DNS_MODE_ALLOWLIST", "forward": [{"zone": "*.corp", "to": ["192.0.2.53"]}]}}`, "REFUSED", "r1", "bulk_update.dns.forward[0].zone"},
		{`"revision": "r2", "deny_domain": {"domain": "evil.org", "ports": [{"first": 443}]}`, "REFUSED", "r1", "deny_domain.ports"},
		{`"revision": "r2", "allow_domain": {"domain": "pypi.org", "ports": [{}]}`, "REFUSED", "r1", "allow_domain.ports[0]"},
		{`"revision": "r2", "set_dns_mode": {"mode": "DNS_MODE_PROXY"}`, "APPLIED", "r2", ""},
		{`"revision": "r3", "remove_domain": "nowhere.example"`, "APPLIED", "r3", ""},
	} {
		checkResult(t, p, id, step.command, step.code, step.revision, step.field)
	}
	if got, want := words(d.Show(t, id).Policy), "allowlist, dns proxy, allow pypi.org"; got != want {
		t.Errorf("policy %s, want %s", got, want)
	}
}

// checkResult sends a command with the next number and looks at the answer.
func checkResult(t *testing.T, p *plane, id, command, code, revision, field string) {
	t.Helper()
	p.number++
	p.Send(`{"id": %q, "number": %d, %s}`, id, p.number, command)
	e := p.Next()
	r := e.Result
	if r == nil {
		t.Fatalf("%s: got %s, want a result", command, e.Text)
	}
	if r.Number != p.number || r.ID != id || r.Code != "COMMAND_CODE_"+code || r.Revision != revision {
		t.Errorf("%s: got %s, want %s at revision %q", command, e.Text, code, revision)
	}
	if (field == "") != (len(r.Violations) == 0) || field != "" && r.Violations[0].Field != field {
		t.Errorf("%s: violations %v, want one of %q", command, r.Violations, field)
	}
}

// The result is sent when the command is in force: the packet sent after it is judged by it, port and end included.
func TestPortsAndExpiry(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	testenv.EchoServer(t, w.Outside, 443)
	d, p := start(t, w.Host, builtFromOurs)
	id := attach(t, d, p, `{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "192.0.2.77"},
		{"cidr": "198.51.100.0/24", "ports": [{"first": 443, "protocol": "PROTOCOL_TCP"}]}]}`, "--interface", w.Link)
	try := func(kind testenv.ProbeKind, to string, port uint16, want bool) {
		t.Helper()
		probe := testenv.Probe{Kind: kind, To: netip.AddrPortFrom(netip.MustParseAddr(to), port), Wait: short}
		if want {
			probe.Wait = testenv.Patience
		}
		if out := workload.Probe(t, probe); out.Answered != want {
			t.Errorf("%s %s:%d: %s, want passed %v", kind, to, port, out, want)
		}
	}
	try(testenv.TCP, "198.51.100.1", 443, true)
	try(testenv.UDPSendto, "198.51.100.1", 443, false)
	try(testenv.TCP, "198.51.100.1", echo, false)

	end := time.Now().Add(10 * time.Second)
	checkResult(t, p, id, `"revision": "short", "allow_cidr": {"cidr": "203.0.113.0/24", "expires_at": "`+
		end.UTC().Format(time.RFC3339Nano)+`"}`, "APPLIED", "short", "")
	try(testenv.UDPSendto, "203.0.113.1", echo, true)
	if time.Now().After(end) {
		t.Fatal("the machine is too busy for this test")
	}
	testenv.Eventually(t, "end of the rule", func() bool {
		answered, by := answers(t, workload, netip.MustParseAddrPort("203.0.113.1:7"))
		if !answered && by.Before(end) {
			t.Fatal("the rule ended before its time")
		}
		return !answered
	})
	try(testenv.TCP, "198.51.100.1", 443, true)
}
