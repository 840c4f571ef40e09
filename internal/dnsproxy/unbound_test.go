// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/testenv"
)

// zone is served by unbound. $TXT is larger than a datagram.
const zone = `$ORIGIN example.
@ 300 IN SOA ns h 1 3600 600 86400 60
@ 300 IN NS ns
ns 300 IN A 192.0.2.54
a 300 IN A 192.0.2.1
a 300 IN AAAA 2001:db8::1
a 300 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1
b 40 IN CNAME c
c 300 IN CNAME a
*.wild 300 IN A 192.0.2.2
private 300 IN A 10.0.0.1
sub 300 IN DNAME other
x.other 300 IN A 192.0.2.3
large 300 IN TXT $TXT
`

// unbound starts the real thing on loopback.
func unbound(t *testing.T) *resolver {
	t.Helper()
	testenv.Require(t, testenv.Program("unbound"))
	dir := t.TempDir()
	pc, l := samePort(t)
	addr := netip.MustParseAddrPort(pc.LocalAddr().String())
	pc.Close()
	l.Close()
	text := strings.Repeat(`"`+strings.Repeat("x", 250)+`" `, 12)
	files := map[string]string{
		"zone": strings.Replace(zone, "$TXT", text, 1),
		"conf": fmt.Sprintf(`server:
	interface: 127.0.0.1@%d
	port: %d
	do-ip6: no
	chroot: ""
	username: ""
	directory: %q
	pidfile: ""
	use-syslog: no
	logfile: ""
	do-daemonize: no
	num-threads: 1
	module-config: "iterator"
remote-control:
	control-enable: no
auth-zone:
	name: "example."
	zonefile: "zone"
	for-downstream: yes
	for-upstream: yes
`, addr.Port(), addr.Port(), dir),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var output bytes.Buffer
	cmd := exec.Command("unbound", "-d", "-c", filepath.Join(dir, "conf"))
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("unbound: %s", &output)
		}
	})
	c := dns.Client{Timeout: 100 * time.Millisecond}
	for end := time.Now().Add(20 * time.Second); ; {
		if m, _, err := c.Exchange(questionFor("a.example", dns.TypeA), addr.String()); err == nil && len(m.Answer) == 1 {
			return &resolver{addr: addr}
		}
		if time.Now().After(end) {
			t.Fatalf("unbound does not answer: %s", &output)
		}
	}
}

func TestUnbound(t *testing.T) {
	w := serve(t, Options{}, []*resolver{unbound(t)}, allowlist("*.example", "example"))
	for _, tt := range []struct {
		name    string
		qtype   uint16
		rcode   int
		answer  []string
		learned []string
	}{
		{"A.example", dns.TypeA, 0, []string{"192.0.2.1"}, []string{"192.0.2.1"}},
		{"a.example", dns.TypeAAAA, 0, []string{"2001:db8::1"}, []string{"2001:db8::1"}},
		{"a.example", dns.TypeHTTPS, 0, []string{`1 . alpn="h2" ipv4hint="192.0.2.1"`}, []string{"192.0.2.1"}},
		{"a.example", dns.TypeMX, 0, []string{}, nil},
		{"b.example", dns.TypeA, 0, []string{"c.example.", "a.example.", "192.0.2.1"}, []string{"192.0.2.1"}},
		{"q.wild.example", dns.TypeA, 0, []string{"192.0.2.2"}, []string{"192.0.2.2"}},
		{"private.example", dns.TypeA, 0, []string{}, nil},
		{"x.sub.example", dns.TypeA, 0, []string{"other.example.", "x.other.example.", "192.0.2.3"}, []string{"192.0.2.3"}},
		{"none.example", dns.TypeA, dns.RcodeNameError, []string{}, nil},
	} {
		for _, network := range []string{"udp", "tcp"} {
			before := len(w.kernel.taught())
			m := w.exchangeWith(t, network, questionFor(tt.name, tt.qtype))
			// What a DNAME makes of a name is cached by unbound as it was first spelt.
			if m.Rcode != tt.rcode || !slices.EqualFunc(rdata(m.Answer), tt.answer, strings.EqualFold) || len(tt.answer) == 0 && len(m.Ns) == 0 {
				t.Errorf("%s %s: %v", network, tt.name, m)
			}
			var learned []netip.Addr
			for _, l := range w.kernel.taught()[before:] {
				learned = append(learned, l.Addrs...)
			}
			if !slices.Equal(learned, addrs(tt.learned...)) {
				t.Errorf("%s %s: learned %v", network, tt.name, learned)
			}
		}
	}
	large := questionFor("large.example", dns.TypeTXT)
	if m := w.exchangeWith(t, "udp", large); !m.Truncated {
		t.Errorf("a large answer over UDP: %v", m)
	}
	if m := w.exchangeWith(t, "tcp", large); m.Truncated || len(m.Answer) != 1 || m.Len() < 3000 {
		t.Errorf("a large answer over TCP: %v", m)
	}
}
