// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/internal/testenv/authority"
	"github.com/netfence/netfence/test/harness"
)

// A daemon with TLS and a bearer token, under netfence-control over a folder. A token that is not the daemon's, or is taken
// back, is said on both sides; what stands by it ends.
func TestTLSAndToken(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	ours, dir := authority.New(t, "ours"), t.TempDir()
	ours.Issue(t, dir, authority.Leaf{Name: "server", IP: net.IPv4(127, 0, 0, 1)})
	s := &alone{dir: dir}
	token, other := s.token(t, "daemons", "host-1"), s.token(t, "daemons", "host-2")
	s.write(t, "policies/agents.yaml", "mode: allowlist\nallow: [192.0.2.1]\n")
	s = newAlone(t, dir, "tls: {cert_file: '{dir}/server.pem', key_file: '{dir}/server.key'}\ndaemons: {tokens_file: '{dir}/daemons'}\npolicies: dir://{dir}/policies\n")

	file := s.write(t, "token", token)
	d := harness.New(t, nil, "NETFENCE_DAEMON_ID=host-1", "NETFENCE_CONTROL_PLANE_URL="+s.daemons,
		"NETFENCE_CONTROL_PLANE_TLS_CA_FILE="+ours.CA, "NETFENCE_CONTROL_PLANE_TOKEN_FILE="+file)
	d.Start(t)
	connects(t, d, "a connection by TLS and token", "")
	id := d.Attach(t, "--cgroup", testenv.NewCgroup(t).Path)
	permits(t, d, id, "192.0.2.1/32")

	s.write(t, "policies/agents.yaml", "mode: allowlist\nallow: [192.0.2.2]\n")
	permits(t, d, id, "192.0.2.2/32")

	// Of what stands, and of what comes after.
	lines, err := os.ReadFile(filepath.Join(dir, "daemons"))
	if err != nil {
		t.Fatal(err)
	}
	since := len(s.said.String())
	s.write(t, "daemons", "# nobody\n")
	connects(t, d, "a token that was taken back", `the token is not that of daemon "host-1"`)
	s.says(t, since, "its stream is ended")
	s.write(t, "daemons", string(lines))
	connects(t, d, "the token given again", "")
	s.write(t, "token", other)
	d.Kill(t)
	d.Start(t)
	connects(t, d, "another daemon's token", `the token is not that of daemon "host-1"`)
	s.says(t, since, `daemon refused" daemon=host-1`)
	if got := d.Show(t, id).Policy; len(got.Allow) != 1 || got.Allow[0].Prefix.String() != "192.0.2.2/32" {
		t.Errorf("a daemon that is refused has %+v in force", got)
	}
	s.write(t, "token", token)
	connects(t, d, "its own token again", "")
}

// Expired, of another name, revoked: the certificate of either side is refused by the other, and both say why, be it in
// other words. What is revoked ends a stream that stands.
func TestCertificates(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	ours, dir := authority.New(t, "ours"), t.TempDir()
	over := time.Now().Add(-time.Minute)
	loopback := net.IPv4(127, 0, 0, 1)
	const name = "spiffe://example.org/netfenced/host-"
	issued := map[string]authority.Issued{
		"server":         ours.Issue(t, dir, authority.Leaf{Name: "server", IP: loopback}),
		"server good":    ours.Issue(t, dir, authority.Leaf{Name: "server good", IP: loopback}),
		"server expired": ours.Issue(t, dir, authority.Leaf{Name: "server expired", IP: loopback, NotAfter: over}),
		"server other":   ours.Issue(t, dir, authority.Leaf{Name: "server other", IP: net.IPv4(127, 0, 0, 2)}),
		"daemon":         ours.Issue(t, dir, authority.Leaf{Name: "daemon", URI: name + "1"}),
		"daemon good":    ours.Issue(t, dir, authority.Leaf{Name: "daemon good", URI: name + "1"}),
		"daemon expired": ours.Issue(t, dir, authority.Leaf{Name: "daemon expired", URI: name + "1", NotAfter: over}),
		"daemon other":   ours.Issue(t, dir, authority.Leaf{Name: "daemon other", URI: name + "2"}),
	}
	hour := time.Now().Add(time.Hour)
	ours.Revoke(t, dir, "daemons.crl", hour)
	ours.Revoke(t, dir, "servers.crl", hour)
	s := newAlone(t, dir, `tls: {cert_file: '{dir}/server.pem', key_file: '{dir}/server.key', client_ca_file: '`+ours.CA+`', crl_file: '{dir}/daemons.crl'}
daemons: {names: ["spiffe://example.org/netfenced/{daemon_id}"]}
policies: dir://{dir}/policies
`)
	d := harness.New(t, nil, "NETFENCE_DAEMON_ID=host-1", "NETFENCE_CONTROL_PLANE_URL="+s.daemons,
		"NETFENCE_CONTROL_PLANE_TLS_CA_FILE="+ours.CA, "NETFENCE_CONTROL_PLANE_TLS_CRL_FILE="+dir+"/servers.crl",
		"NETFENCE_CONTROL_PLANE_TLS_CERT_FILE="+issued["daemon"].Cert, "NETFENCE_CONTROL_PLANE_TLS_KEY_FILE="+issued["daemon"].Key)
	use := func(side, which string) {
		t.Helper()
		for from, to := range map[string]string{issued[side+which].Cert: issued[side].Cert, issued[side+which].Key: issued[side].Key} {
			data, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			s.write(t, filepath.Base(to), string(data))
		}
	}
	use("server", " good")
	use("daemon", " good")
	d.Start(t)
	connects(t, d, "good certificates", "")

	again := func() {
		t.Helper()
		<-time.After(1500 * time.Millisecond) // the server looks at its files once a second
		d.Kill(t)
		d.Start(t)
	}
	revoked := func(side string) string {
		return fmt.Sprintf("the certificate of CN=%s good, serial number %s, was revoked at", side, issued[side+" good"].Serial)
	}
	for _, c := range []struct {
		name         string
		spoil, mend  func()
		daemon, says string // its status, and the server's log
		stands       bool   // the stream that stands ends, too
	}{
		{
			"an expired daemon", func() { use("daemon", " expired") }, func() { use("daemon", " good") },
			"remote error: tls: expired certificate (the control plane refuses this daemon's certificate", "certificate has expired", false,
		},
		{
			"another daemon", func() { use("daemon", " other") }, func() { use("daemon", " good") },
			"the certificate is for " + name + `2, not for daemon "host-1"`, "the certificate is for " + name + "2, not for daemon", false,
		},
		{
			"a revoked daemon", func() { ours.Revoke(t, dir, "daemons.crl", hour, issued["daemon good"].Serial) },
			func() { ours.Revoke(t, dir, "daemons.crl", hour) },
			"remote error: tls: bad certificate (the control plane refuses this daemon's certificate", revoked("daemon"), true,
		},
		{
			"an expired server", func() { use("server", " expired") }, func() { use("server", " good") },
			"certificate has expired", "daemon refuses this server's certificate", false,
		},
		{
			"a server of another name", func() { use("server", " other") }, func() { use("server", " good") },
			"certificate is valid for 127.0.0.2, not 127.0.0.1", "daemon refuses this server's certificate", false,
		},
		{
			"a revoked server", func() { ours.Revoke(t, dir, "servers.crl", hour, issued["server good"].Serial) },
			func() { ours.Revoke(t, dir, "servers.crl", hour) },
			revoked("server"), "daemon refuses this server's certificate", true,
		},
	} {
		since := len(s.said.String())
		c.spoil()
		if !c.stands {
			again()
		}
		connects(t, d, c.name, c.daemon)
		s.says(t, since, c.says)
		c.mend()
		again()
		connects(t, d, "mended: "+c.name, "")
	}
}
