// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/testenv"
)

// peer is another server that forwards to the same upstream, with what its manual advises for two processors.
type peer struct {
	name    string
	at      netip.AddrPort
	program string
	args    func(dir string) []string
	conf    string // in dir/conf; %[1]s:%[2]d is at, %[3]s the upstream
}

// peers answer names below cached.example from their cache, and forward those below fresh.example. CoreDNS is built from
// bench/coredns.
var peers = []peer{
	{"unbound", netip.MustParseAddrPort("127.0.0.1:5301"), "unbound", func(dir string) []string { return []string{"-d", "-c", filepath.Join(dir, "conf")} }, `
server:
	interface: %[1]s@%[2]d
	port: %[2]d
	num-threads: 2
	so-reuseport: yes
	outgoing-range: 8192
	num-queries-per-thread: 4096
	msg-cache-slabs: 2
	rrset-cache-slabs: 2
	infra-cache-slabs: 2
	key-cache-slabs: 2
	so-rcvbuf: 4m
	module-config: "iterator"
	chroot: ""
	username: ""
	pidfile: ""
	use-syslog: no
	logfile: ""
	do-daemonize: no
remote-control:
	control-enable: no
forward-zone:
	name: "."
	forward-addr: %[3]s
`},
	{"dnsdist", netip.MustParseAddrPort("127.0.0.1:5302"), "dnsdist", func(dir string) []string {
		return []string{"--supervised", "--disable-syslog", "-C", filepath.Join(dir, "conf")}
	}, `
addLocal("%[1]s:%[2]d", {reusePort=true})
addLocal("%[1]s:%[2]d", {reusePort=true})
newServer({address="%[3]s:53", sockets=8, checkName="n0.cached.example."})
newServer({address="%[3]s:53", sockets=8, checkName="n0.cached.example.", pool="cached"})
getPool("cached"):setCache(newPacketCache(100000))
addAction(makeRule("cached.example."), PoolAction("cached"))
setSecurityPollSuffix("")
`},
	{"CoreDNS", netip.MustParseAddrPort("127.0.0.1:5303"), filepath.Join(os.TempDir(), "netfence-coredns"), func(dir string) []string { return []string{"-conf", filepath.Join(dir, "conf"), "-quiet"} }, `
cached.example:%[2]d {
	bind %[1]s
	cache
	forward . %[3]s
}
fresh.example:%[2]d {
	bind %[1]s
	forward . %[3]s
}
`},
}

// start starts the peer beside the daemon, as a process; why not, if it is not to be had on this machine.
func (p peer) start(t testing.TB, ns *testenv.NS) (pid int, why error) {
	t.Helper()
	if p.name == "CoreDNS" {
		build := exec.Command("go", "build", "-o", p.program, ".")
		build.Dir = filepath.Join("..", "..", "bench", "coredns")
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("go build: %v: %s", err, strings.TrimSpace(string(out)))
		}
		defer os.Remove(p.program) // it runs on
	}
	if _, err := exec.LookPath(p.program); err != nil {
		return 0, err
	}
	return p.run(t, ns, upstream), nil
}

// run starts the program in the namespace, and waits until it answers.
func (p peer) run(t testing.TB, ns *testenv.NS, upstream string) (pid int) {
	t.Helper()
	dir := t.TempDir()
	conf := fmt.Sprintf(p.conf, p.at.Addr(), p.at.Port(), upstream)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(p.program, p.args(dir)...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	testenv.Start(t, cmd, ns, nil)
	query := new(dns.Msg).SetQuestion("n0.cached.example.", dns.TypeA)
	deadline := time.Now().Add(testenv.Patience)
	for {
		var reply *dns.Msg
		var err error
		ns.Do(func() {
			client := dns.Client{Timeout: 100 * time.Millisecond}
			reply, _, err = client.Exchange(query, p.at.String())
		})
		if err == nil && reply.Rcode != dns.RcodeServerFailure {
			return cmd.Process.Pid
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v, %v: %s", p.name, err, reply, &said)
		}
	}
}
