// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/internal/testenv/authority"
	"github.com/netfence/netfence/test/harness"
)

// netfence-control reaches etcd by mutual TLS and a password, as a user who may touch nothing but the policies. It says
// when the password is wrong, takes a restarted etcd, which has forgotten who was logged in, for what it is, and a renewed
// certificate without a restart of its own.
func TestEtcdTLSAndPassword(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	ours, dir := authority.New(t, "ours"), t.TempDir()
	member := ours.Issue(t, dir, authority.Leaf{Name: "member", IP: net.IPv4(127, 0, 0, 1)})
	control := ours.Issue(t, dir, authority.Leaf{Name: "control"})
	address := freePort(t)
	url, peer := "https://"+address, "http://"+freePort(t)
	etcd := &program{t: t, command: []string{
		"etcd", "--name", "m", "--data-dir", filepath.Join(dir, "etcd"), "--logger", "zap", "--log-level", "error",
		"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", "m=" + peer, "--cert-file", member.Cert, "--key-file", member.Key, "--trusted-ca-file", ours.CA, "--client-cert-auth",
	}}
	etcd.start()
	restrict(t, address, ours.CA, control)

	s := &alone{dir: dir}
	s.write(t, "password", "wrong\n")
	s = newAlone(t, dir, "policies: etcd://"+address+"/netfence/policies\netcd: {ca_file: '"+ours.CA+
		"', cert_file: '{dir}/control.pem', key_file: '{dir}/control.key', user: netfence, password_file: '{dir}/password'}\n")
	answers := func(what string, code int, text string) {
		t.Helper()
		last := ""
		defer func() {
			if t.Failed() {
				t.Logf("%s: last answer: %s\netcd said:\n%s", what, last, etcd.said.String())
			}
		}()
		deadline := time.Now().Add(2 * testenv.Patience)
		for {
			r, err := http.Get("http://" + s.api + "/readyz")
			if err == nil {
				body, _ := io.ReadAll(r.Body)
				r.Body.Close()
				if last = r.Status + " " + string(body); r.StatusCode == code && strings.Contains(last, text) {
					return
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within %s", what, 2*testenv.Patience)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	answers("a wrong password", http.StatusServiceUnavailable, "authentication failed, invalid user ID or password")
	s.write(t, "password", "secret\n")
	answers("the right one", http.StatusOK, "")

	d := harness.New(t, nil, "NETFENCE_CONTROL_PLANE_URL="+s.daemons)
	d.Start(t)
	connects(t, d, "a connection", "")
	s.put(t, "agents.yaml", "mode: allowlist\nallow: [192.0.2.1]\n")
	id := d.Attach(t, "--cgroup", testenv.NewCgroup(t).Path)
	permits(t, d, id, "192.0.2.1/32")

	renewed := ours.Issue(t, dir, authority.Leaf{Name: "renewed"})
	for from, to := range map[string]string{renewed.Cert: "control.pem", renewed.Key: "control.key"} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		s.write(t, to, string(data))
	}
	etcd.kill()
	answers("etcd is away", http.StatusServiceUnavailable, "etcd")
	permits(t, d, id, "192.0.2.1/32")
	etcd.start()
	answers("etcd is back", http.StatusOK, "")
	s.put(t, "agents.yaml", "mode: allowlist\nallow: [192.0.2.2]\n")
	permits(t, d, id, "192.0.2.2/32")
}

// put writes a policy through the API.
func (s *alone) put(t *testing.T, name, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+s.api+"/v1/policies/"+name, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.admin)
	r.Header.Set("If-Match", "*")
	if s.puts++; s.puts == 1 {
		r.Header.Del("If-Match")
		r.Header.Set("If-None-Match", "*")
	}
	answered, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answered.Body.Close()
	if body, _ := io.ReadAll(answered.Body); answered.StatusCode >= 300 {
		t.Fatalf("put %s: %s %s", name, answered.Status, body)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// restrict has etcd ask for passwords, and gives the user netfence the policies alone.
func restrict(t *testing.T, address, ca string, own authority.Issued) {
	t.Helper()
	data, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(own.Cert, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	config.RootCAs.AppendCertsFromPEM(data)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, TLS: config, Logger: zap.NewNop(), DialTimeout: testenv.Patience})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := t.Context()
	do := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, "etcd", func() bool {
		_, err = client.Get(ctx, "x")
		return err == nil
	})
	do(client.UserAdd(ctx, "root", "root's"))
	do(client.UserGrantRole(ctx, "root", "root"))
	do(client.RoleAdd(ctx, "policies"))
	do(client.RoleGrantPermission(ctx, "policies", "/netfence/policies/", clientv3.GetPrefixRangeEnd("/netfence/policies/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	do(client.UserAdd(ctx, "netfence", "secret"))
	do(client.UserGrantRole(ctx, "netfence", "policies"))
	do(client.AuthEnable(ctx))
}
