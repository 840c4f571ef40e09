// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/testenv"
)

// unboundServer is how unbound is configured as an upstream, but for its modules and its zone.
const unboundServer = `
server:
	interface: %[1]s@%[2]d
	access-control: 0.0.0.0/0 allow
	do-ip6: no
	chroot: ""
	username: ""
	pidfile: ""
	use-syslog: no
	logfile: ""
	do-daemonize: no
`

// realZone is served by BIND and by unbound, signed. $TXT is larger than a datagram.
const realZone = `$ORIGIN example.
$TTL 300
@ IN SOA ns h 1 3600 600 86400 60
@ IN NS ns
ns IN A 198.51.100.53
a IN A 203.0.113.1
a IN AAAA 2001:db8:200::1
a IN HTTPS 1 . alpn=h2 ipv4hint=203.0.113.1
a IN CAA 0 issue "ca.example"
b IN CNAME c
c IN CNAME a
*.wild IN A 203.0.113.2
large IN TXT $TXT
dangling IN CNAME nowhere
_s._tcp IN SRV 0 0 443 a
a IN TYPE65280 \# 3 010203
forged IN A 203.0.113.4
`

// upstreams that are not ours. %[3]s is the directory that signedZone has made.
var upstreams = map[string]peer{
	"BIND": {"BIND", netip.MustParseAddrPort(upstream + ":53"), "named",
		func(dir string) []string { return []string{"-g", "-n", "1", "-c", filepath.Join(dir, "conf")} }, `
options {
	directory "%[3]s";
	listen-on port %[2]d { %[1]s; };
	listen-on-v6 { none; };
	pid-file none;
	session-keyfile none;
	lock-file none;
	recursion no;
	dnssec-validation no;
	max-udp-size 1232;
	notify no;
};
controls {};
zone "example" { type primary; file "zone.signed"; };
`},
	"unbound": {"unbound", netip.MustParseAddrPort(upstream + ":53"), "unbound", peers[0].args, unboundServer + `	module-config: "iterator"
remote-control:
	control-enable: no
auth-zone:
	name: "example."
	zonefile: "%[3]s/zone.signed"
	for-downstream: yes
	for-upstream: no
`},
}

// signedZone is a directory with the zone, signed.
func signedZone(t *testing.T) string {
	t.Helper()
	testenv.Require(t, testenv.Program("dnssec-keygen"), testenv.Program("dnssec-signzone"))
	dir := t.TempDir()
	plain, signed := filepath.Join(dir, "zone"), filepath.Join(dir, "zone.signed")
	text := strings.Repeat(`"`+strings.Repeat("x", 250)+`" `, 12)
	if err := os.WriteFile(plain, []byte(strings.Replace(realZone, "$TXT", text, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", "-K", dir, "-f", "KSK", "example"},
		{"dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", "-K", dir, "example"},
		{"dnssec-signzone", "-q", "-S", "-K", dir, "-d", dir, "-o", "example", "-f", signed, plain},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args[0], err, out)
		}
	}
	return dir
}

// TestRealUpstreams: what BIND and unbound say comes through as it is, signatures and proofs included, whichever way it
// was asked for.
func TestRealUpstreams(t *testing.T) {
	zone := signedZone(t)
	for name, server := range upstreams {
		t.Run(name, func(t *testing.T) {
			testenv.Require(t, testenv.Program(server.program))
			s := newUnserved(t, testenv.VethDevice)
			s.hasUpstream(t)
			server.run(t, s.Outside, zone)
			s.Policy(t, "names.yaml", allowing("example", "*.example"))
			s.Start(t)
			host := place{s.OnHost, "host", s.Host, nil, nil}
			s.both(t, func(t *testing.T, p place, _ string) {
				for _, question := range []struct{ name, qtype, status string }{
					{"a.example", "A", "NOERROR"},
					{"a.example", "AAAA", "NOERROR"},
					{"a.example", "HTTPS", "NOERROR"},
					{"a.example", "CAA", "NOERROR"},
					{"a.example", "TYPE65280", "NOERROR"},
					{"a.example", "MX", "NOERROR"}, // there is none
					{"b.example", "A", "NOERROR"},
					{"q.wild.example", "A", "NOERROR"},
					{"large.example", "TXT", "NOERROR"},
					{"dangling.example", "A", ""}, // unbound does not look further,
					{"none.example", "A", "NXDOMAIN"},
					{"_s._tcp.example", "SRV", "NOERROR"},
					{"example", "DNSKEY", "NOERROR"},
					{"example", "SOA", "NOERROR"},
				} {
					for _, flags := range [][]string{{"+nodnssec"}, {"+dnssec"}, {"+dnssec", "+tcp"}} {
						args := append([]string{question.name, question.qtype}, flags...)
						want, got := host.sections(t, upstream, args), p.sections(t, public, args)
						if question.status != "" && want.status != question.status || len(want.records) == 0 {
							t.Fatalf("%s says to %s: %s", name, args, want.text)
						}
						if got.status != want.status || !slices.Equal(got.records, want.records) {
							t.Errorf("%s:\n%s\n%s says:\n%s", args, got.text, name, want.text)
						}
					}
				}
				s.reaches(t, p, true, "203.0.113.1", "203.0.113.2", "2001:db8:200::1")
				s.reaches(t, p, false, "203.0.113.3")
			})
			s.nobodyElseAsked(t)
		})
	}
}

// validating is unbound that answers from the zone what is signed as the zone's parent says.
var validating = peer{"unbound", netip.MustParseAddrPort(upstream + ":53"), "unbound", peers[0].args, unboundServer + `	module-config: "validator iterator"
	trust-anchor-file: "%[3]s/dsset-example."
	ede: yes
remote-control:
	control-enable: no
auth-zone:
	name: "example."
	zonefile: "%[3]s/zone.signed"
	for-downstream: no
	for-upstream: yes
`}

// TestValidatingUpstream: what the upstream has verified is called so to who wants to know; what it found to be forged
// is not had by anybody, not even by who would rather not have it checked, and the reason comes through.
func TestValidatingUpstream(t *testing.T) {
	testenv.Require(t, testenv.Program(validating.program))
	zone := signedZone(t)
	file := filepath.Join(zone, "zone.signed")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.ReplaceAll(string(text), "203.0.113.4", "203.0.113.5")
	if forged == string(text) {
		t.Fatal("there is nothing to forge")
	}
	if err := os.WriteFile(file, []byte(forged), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newUnserved(t, testenv.VethDevice)
	s.hasUpstream(t)
	validating.run(t, s.Outside, zone)
	s.Policy(t, "names.yaml", allowing("example", "*.example"))
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		for _, test := range []struct {
			args     []string
			verified bool
		}{
			{[]string{"a.example", "A", "+adflag"}, true},
			{[]string{"a.example", "A", "+noadflag"}, false},
			{[]string{"b.example", "A", "+noadflag", "+dnssec"}, true},
			{[]string{"q.wild.example", "A", "+dnssec", "+tcp"}, true},
			{[]string{"none.example", "A", "+dnssec"}, true},
			{[]string{"a.example", "HTTPS", "+dnssec"}, true},
		} {
			a := p.sections(t, public, test.args)
			if a.status != "NOERROR" && a.status != "NXDOMAIN" || a.flag("ad") != test.verified {
				t.Errorf("%s: %s", test.args, a.text)
			}
		}
		for _, flag := range []string{"+dnssec", "+nodnssec", "+cdflag"} {
			a := p.sections(t, public, []string{"forged.example", "A", flag})
			if a.status != "SERVFAIL" || len(a.records) != 0 || !strings.Contains(a.text, "upstream: ") || !strings.Contains(a.text, "Bogus") {
				t.Errorf("forged, %s: %s", flag, a.text)
			}
		}
		s.reaches(t, p, false, "203.0.113.4", "203.0.113.5")
		s.reaches(t, p, true, "203.0.113.1", "203.0.113.2")
	})
	s.nobodyElseAsked(t)
}

// hasUpstream gives a device the upstream's address: BIND listens on no other.
func (s *named) hasUpstream(t *testing.T) {
	t.Helper()
	var err error
	s.Outside.Do(func() {
		var lo netlink.Link
		if lo, err = netlink.LinkByName("lo"); err == nil {
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(upstream), Mask: net.CIDRMask(32, 32)}})
		}
	})
	if err != nil {
		t.Fatalf("address %s: %v", upstream, err)
	}
}

// sections is an answer as dig shows it: its status, and its records without their lifetimes, which run.
type sections struct {
	status  string
	records []string
	text    string
}

func (p place) sections(t *testing.T, server string, args []string) (a sections) {
	t.Helper()
	dig := exec.Command("dig", append([]string{"@" + server, "+tries=1", "+noall", "+comments", "+answer", "+authority"}, args...)...)
	var out strings.Builder
	dig.Stdout, dig.Stderr = &out, &out
	testenv.Start(t, dig, p.ns, p.cg)
	if err := dig.Wait(); err != nil {
		t.Fatalf("dig: %v\n%s", err, &out)
	}
	a.text = out.String()
	for line := range strings.Lines(a.text) {
		if _, status, ok := strings.Cut(line, "status: "); ok {
			a.status, _, _ = strings.Cut(status, ",")
		}
		if fields := strings.Fields(line); len(fields) > 4 && !strings.HasPrefix(line, ";") {
			a.records = append(a.records, fmt.Sprint(fields[0], fields[2:]))
		}
	}
	slices.Sort(a.records) // a set has no order
	return a
}

// flag reports whether the header has one, as dig names it.
func (a sections) flag(name string) bool {
	_, flags, _ := strings.Cut(a.text, "flags:")
	flags, _, _ = strings.Cut(flags, ";")
	return slices.Contains(strings.Fields(flags), name)
}
