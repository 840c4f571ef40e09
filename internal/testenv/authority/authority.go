// SPDX-License-Identifier: Apache-2.0

// Package authority issues certificates for tests, into files.
package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs. CA is the file with its certificate.
type Authority struct {
	CA   string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Leaf is what to issue. All but Name may be left out; it is good for clients and servers.
type Leaf struct {
	Name, DNS, URI string
	IP             net.IP
	NotAfter       time.Time // zero: in an hour
}

// Issued is a certificate and its key, in files.
type Issued struct {
	Cert, Key string
	Serial    *big.Int
}

// New makes an authority of its own.
func New(t testing.TB, name string) *Authority {
	t.Helper()
	a := &Authority{CA: filepath.Join(t.TempDir(), name+".pem"), key: newKey(t)}
	a.cert = &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	must(t, err)
	a.cert, err = x509.ParseCertificate(der)
	must(t, err)
	write(t, a.CA, "CERTIFICATE", der)
	return a
}

// Issue writes NAME.pem and NAME.key into dir.
func (a *Authority) Issue(t testing.TB, dir string, leaf Leaf) Issued {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: leaf.Name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if !leaf.NotAfter.IsZero() {
		template.NotAfter = leaf.NotAfter
	}
	if leaf.DNS != "" {
		template.DNSNames = []string{leaf.DNS}
	}
	if leaf.IP != nil {
		template.IPAddresses = []net.IP{leaf.IP}
	}
	if leaf.URI != "" {
		uri, err := url.Parse(leaf.URI)
		must(t, err)
		template.URIs = []*url.URL{uri}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	issued := Issued{Cert: filepath.Join(dir, leaf.Name+".pem"), Key: filepath.Join(dir, leaf.Name+".key"), Serial: template.SerialNumber}
	write(t, issued.Cert, "CERTIFICATE", der)
	write(t, issued.Key, "PRIVATE KEY", private)
	return issued
}

// Revoke writes a revocation list into dir and returns its path.
func (a *Authority) Revoke(t testing.TB, dir, name string, nextUpdate time.Time, serials ...*big.Int) string {
	t.Helper()
	template := &x509.RevocationList{Number: serial(t), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: nextUpdate}
	for _, s := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	must(t, err)
	path := filepath.Join(dir, name)
	write(t, path, "X509 CRL", der)
	return path
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(t, err)
	return n.Add(n, big.NewInt(1))
}

func write(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
