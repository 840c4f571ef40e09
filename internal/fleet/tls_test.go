// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/netfence/netfence/controlplane/controlplanetest"
)

// authority signs certificates for a test.
type authority struct {
	t      *testing.T
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, serial: 1}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1},
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(signed); err != nil {
		t.Fatal(err)
	}
	return a
}

// pem is the authority's own certificate.
func (a *authority) pem() string { return block("CERTIFICATE", a.cert.Raw) }

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// issue signs a certificate for a name: a URI, or of the host.
func (a *authority) issue(name string, edit ...func(*x509.Certificate)) (cert, key string) {
	a.t.Helper()
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if uri, err := url.Parse(name); err == nil && uri.Scheme != "" {
		template.URIs = []*url.URL{uri}
	} else {
		template.DNSNames = []string{name}
	}
	for _, e := range edit {
		e(template)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return block("CERTIFICATE", signed), block("PRIVATE KEY", encoded)
}

// client is what one with such a certificate dials with.
func (a *authority) client(cert, key string) *tls.Config {
	a.t.Helper()
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "control.example"}
	c.RootCAs.AddCert(a.cert)
	if cert != "" {
		pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			a.t.Fatal(err)
		}
		// Whatever the server asks for.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return c
}

// revoke makes a list of revoked serial numbers.
func (a *authority) revoke(until time.Time, serials ...int64) string {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: until}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return block("X509 CRL", der)
}

// ask asks the API over a client's connection.
func (s *served) ask(client *http.Client) (code int, text string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "https://"+s.APIAddress()+"/v1/daemons", http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.admin)
	answered, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answered.Body.Close()
	body, err := io.ReadAll(answered.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answered.StatusCode, string(body)
}

// TestCertificates: a daemon is who its certificate says, as long as it is good; the server's own is taken anew when it
// was rotated.
func TestCertificates(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	put := func(dir string, contents map[string]string) {
		for name, text := range contents {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	host1, key1 := ca.issue("spiffe://example.org/netfenced/host-1")
	host2, key2 := ca.issue("spiffe://example.org/netfenced/host-2")
	revokedSerial := ca.serial
	s := serve(t, `
tls: {cert_file: "{dir}/cert", key_file: "{dir}/key", client_ca_file: "{dir}/ca", crl_file: "{dir}/crl"}
daemons: {names: ["spiffe://example.org/netfenced/{daemon_id}"]}
api: {listen: "127.0.0.1:0", tokens_file: "{dir}/admins", tls: {cert_file: "{dir}/cert", key_file: "{dir}/key", client_ca_file: "{dir}/ca", crl_file: "{dir}/crl"}}`,
		func(dir string) {
			cert, key := ca.issue("control.example")
			put(dir, map[string]string{"cert": cert, "key": key, "ca": ca.pem(), "crl": ca.revoke(time.Now().Add(time.Hour))})
		})
	connect := func(id string, config *tls.Config) error {
		d := controlplanetest.New(s.dial(config), controlplanetest.Config{ID: id})
		defer d.Disconnect()
		return d.Reconnect()
	}
	if err := connect("host-1", ca.client(host1, key1)); err != nil {
		t.Fatal(err)
	}
	if err := connect("host-2", ca.client(host2, key2)); err != nil {
		t.Fatal(err)
	}
	expired, expiredKey := ca.issue("spiffe://example.org/netfenced/host-1", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	})
	stray, strayKey := foreign.issue("spiffe://example.org/netfenced/host-1")
	web, webKey := ca.issue("web.example")
	// Of a failed handshake the client is told by an alert, if it still listens; the server's log always has the reason.
	for _, refused := range []struct {
		what   string
		config *tls.Config
		code   codes.Code
		says   string
	}{
		{"another daemon's", ca.client(host2, key2), codes.Unauthenticated, "spiffe://example.org/netfenced/host-2, not for daemon"},
		{"of somebody else", ca.client(web, webKey), codes.Unauthenticated, "web.example, not for daemon"},
		{"none", ca.client("", ""), codes.Unavailable, "client didn't provide a certificate"},
		{"expired", ca.client(expired, expiredKey), codes.Unavailable, "certificate has expired"},
		{"another authority's", ca.client(stray, strayKey), codes.Unavailable, "unknown authority"},
		{"none, in plaintext", nil, codes.Unavailable, "does not look like a TLS handshake"},
	} {
		err := connect("host-1", refused.config)
		if status.Code(err) != refused.code {
			t.Errorf("%s: got %v", refused.what, err)
		}
		eventually(t, "the log says "+refused.says, func() bool { return strings.Contains(s.log.String(), refused.says) })
	}

	// What stands when a certificate is revoked is ended: a stream, and an administrator's connection.
	standing := controlplanetest.Connect(t, s.dial(ca.client(host2, key2)), controlplanetest.Config{ID: "host-2"})
	alice, aliceKey := ca.issue("alice.example")
	kept := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.client(alice, aliceKey), MaxConnsPerHost: 1}}
	defer kept.CloseIdleConnections()
	if code, text := s.ask(kept); code != http.StatusOK {
		t.Errorf("an administrator's certificate: %d %s", code, text)
	}
	s.write("crl", ca.revoke(time.Now().Add(time.Hour), revokedSerial, ca.serial))
	if err := standing.Ended(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "was revoked at") {
		t.Errorf("a stream whose certificate was revoked ended with %v", err)
	}
	if code, text := s.ask(kept); code != http.StatusUnauthorized || !strings.Contains(text, "was revoked at") {
		t.Errorf("an administrator's certificate that was revoked: %d %s", code, text)
	}
	eventually(t, "the revoked certificate is refused", func() bool {
		return connect("host-2", ca.client(host2, key2)) != nil
	})
	eventually(t, "the log says so", func() bool { return strings.Contains(s.log.String(), "its stream is ended") })
	if err := connect("host-1", ca.client(host1, key1)); err != nil {
		t.Errorf("one that is not revoked: %v", err)
	}
	s.write("crl", ca.revoke(time.Now().Add(-time.Minute)))
	eventually(t, "a list that is out of date admits nobody", func() bool {
		return connect("host-1", ca.client(host1, key1)) != nil
	})
	s.write("crl", ca.revoke(time.Now().Add(time.Hour)))
	eventually(t, "a good list admits again", func() bool {
		return connect("host-1", ca.client(host1, key1)) == nil
	})

	// A daemon's certificate is not enough for the API, and a token not without a certificate.
	s.tls = ca.client(host1, key1)
	if r := s.request("", "GET", "/v1/daemons", ""); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %v", r)
	}
	if r := s.request(s.admin, "GET", "/v1/daemons", ""); r.StatusCode != http.StatusOK {
		t.Errorf("with both: %v", r)
	}
	naked := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.client("", ""), DisableKeepAlives: true}}
	if answered, err := naked.Get("https://" + s.APIAddress() + "/healthz"); err == nil {
		answered.Body.Close()
		t.Error("without a certificate: answered")
	}

	cert, key := ca.issue("renewed.example")
	s.write("cert", cert) // one without the other is not used
	s.write("key", key)
	renewed := ca.client(host1, key1)
	renewed.ServerName = "renewed.example"
	eventually(t, "the renewed certificate is used", func() bool { return connect("host-1", renewed) == nil })
}
