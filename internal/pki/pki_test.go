// SPDX-License-Identifier: Apache-2.0

package pki_test

import (
	"crypto/tls"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/pki"
	"github.com/netfence/netfence/internal/testenv/authority"
)

// connect shakes hands once and says how it ended on each side.
func connect(t *testing.T, server *tls.Config, client pki.Files, peer pki.Peer) (clientErr, serverErr error) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, err = conn.Write([]byte("hello"))
			err = errors.Join(err, conn.Close())
		}
		served <- err
	}()
	config, _, err := client.Client(peer)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", listener.Addr().String())
	if err == nil {
		// With TLS 1.3 a client hears only now what the server thinks of its certificate.
		_, err = io.ReadAll(conn)
		err = errors.Join(err, ignoreClosed(conn.Close()))
	}
	return err, <-served
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func mustServer(t *testing.T, f pki.Files) *tls.Config {
	t.Helper()
	config, err := f.Server()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

const id = "spiffe://example.org/control"

func TestHandshake(t *testing.T) {
	ours, theirs := authority.New(t, "ours"), authority.New(t, "theirs")
	dir := t.TempDir()
	good := ours.Issue(t, dir, authority.Leaf{Name: "control", DNS: "control.example", URI: id})
	expired := ours.Issue(t, dir, authority.Leaf{Name: "expired", DNS: "control.example", URI: id, NotAfter: time.Now().Add(-time.Minute)})
	other := theirs.Issue(t, dir, authority.Leaf{Name: "other", DNS: "control.example", URI: id})
	revoked := ours.Issue(t, dir, authority.Leaf{Name: "revoked", DNS: "control.example", URI: id})
	daemon := ours.Issue(t, dir, authority.Leaf{Name: "daemon"})
	late := ours.Issue(t, dir, authority.Leaf{Name: "late", NotAfter: time.Now().Add(-time.Minute)})
	fresh := ours.Revoke(t, dir, "fresh.crl", time.Now().Add(time.Hour), revoked.Serial)
	stale := ours.Revoke(t, dir, "stale.crl", time.Now().Add(-time.Minute))
	foreign := theirs.Revoke(t, dir, "foreign.crl", time.Now().Add(time.Hour))

	named, spiffe := pki.Peer{Name: "control.example"}, pki.Peer{SPIFFEID: id}
	server := func(l authority.Issued) pki.Files { return pki.Files{Cert: l.Cert, Key: l.Key} }
	for _, tt := range []struct {
		name           string
		server, client pki.Files
		peer           pki.Peer
		clientWant     string // in its error; empty: none
		serverWant     string
	}{
		{"by name", server(good), pki.Files{CA: ours.CA}, named, "", ""},
		{"by id", server(good), pki.Files{CA: ours.CA}, spiffe, "", ""},
		{"not revoked", server(good), pki.Files{CA: ours.CA, CRL: fresh}, named, "", ""},
		{"expired", server(expired), pki.Files{CA: ours.CA}, named, "expired", "bad certificate"},
		{"expired, by id", server(expired), pki.Files{CA: ours.CA}, spiffe, "expired", "bad certificate"},
		{"wrong name", server(good), pki.Files{CA: ours.CA}, pki.Peer{Name: "else.example"}, "valid for control.example, not else.example", "bad certificate"},
		{"wrong id", server(good), pki.Files{CA: ours.CA}, pki.Peer{SPIFFEID: "spiffe://example.org/else"}, "is for [spiffe://example.org/control], not for spiffe://example.org/else", "bad certificate"},
		{"another authority", server(other), pki.Files{CA: ours.CA}, named, "unknown authority", "bad certificate"},
		{"another authority, by id", server(other), pki.Files{CA: ours.CA}, spiffe, "unknown authority", "bad certificate"},
		{"none of the system's", server(good), pki.Files{}, named, "unknown authority", "bad certificate"},
		{"revoked", server(revoked), pki.Files{CA: ours.CA, CRL: fresh}, named, "CN=revoked, serial number " + revoked.Serial.String() + ", was revoked at", "bad certificate"},
		{"revoked, by id", server(revoked), pki.Files{CA: ours.CA, CRL: fresh}, spiffe, "was revoked at", "bad certificate"},
		{"list out of date", server(good), pki.Files{CA: ours.CA, CRL: stale}, named, "CN=ours in " + stale + " is out of date since", "bad certificate"},
		{"list of another", server(good), pki.Files{CA: ours.CA, CRL: foreign}, named, "has no revocation list of CN=ours", "bad certificate"},

		{"mutual", pki.Files{Cert: good.Cert, Key: good.Key, CA: ours.CA, CRL: fresh}, pki.Files{CA: ours.CA, Cert: daemon.Cert, Key: daemon.Key}, named, "", ""},
		{"mutual, none", pki.Files{Cert: good.Cert, Key: good.Key, CA: ours.CA}, pki.Files{CA: ours.CA}, named, "certificate required", "didn't provide a certificate"},
		{"mutual, expired", pki.Files{Cert: good.Cert, Key: good.Key, CA: ours.CA}, pki.Files{CA: ours.CA, Cert: late.Cert, Key: late.Key}, named, "remote error: tls:", "expired"},
		{"mutual, another authority", pki.Files{Cert: good.Cert, Key: good.Key, CA: ours.CA}, pki.Files{CA: ours.CA, Cert: other.Cert, Key: other.Key}, named, "certificate required", "didn't provide a certificate"},
		{"mutual, revoked", pki.Files{Cert: good.Cert, Key: good.Key, CA: ours.CA, CRL: fresh}, pki.Files{CA: ours.CA, Cert: revoked.Cert, Key: revoked.Key}, named, "remote error: tls:", "CN=revoked, serial number"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clientErr, serverErr := connect(t, mustServer(t, tt.server), tt.client, tt.peer)
			wantError(t, "client", clientErr, tt.clientWant)
			wantError(t, "server", serverErr, tt.serverWant)
		})
	}
}

func wantError(t *testing.T, who string, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", who, err, want)
	}
}

// What is replaced counts from the next connection on, on both sides, and neither is made anew.
func TestRotation(t *testing.T) {
	before, after := authority.New(t, "before"), authority.New(t, "after")
	dir := t.TempDir()
	first := before.Issue(t, dir, authority.Leaf{Name: "first", DNS: "control.example"})
	second := after.Issue(t, dir, authority.Leaf{Name: "second", DNS: "control.example"})
	ca, crl := dir+"/ca.pem", dir+"/now.crl"
	copyFile(t, before.CA, ca)
	copyFile(t, before.Revoke(t, dir, "a.crl", time.Now().Add(time.Hour)), crl)
	files, peer := pki.Files{CA: ca, CRL: crl, Cert: first.Cert, Key: first.Key}, pki.Peer{Name: "control.example"}
	server := mustServer(t, files)
	try := func(when, clientWant, serverWant string) {
		t.Helper()
		clientErr, serverErr := connect(t, server, files, peer)
		wantError(t, when+": client", clientErr, clientWant)
		wantError(t, when+": server", serverErr, serverWant)
	}
	try("at first", "", "")
	copyFile(t, second.Cert, first.Cert)
	copyFile(t, second.Key, first.Key)
	try("certificate replaced, authorities not", "unknown authority", "bad certificate")
	copyFile(t, after.CA, ca)
	try("authorities replaced, revocation lists not", "no revocation list of CN=after", "bad certificate")
	copyFile(t, after.Revoke(t, dir, "b.crl", time.Now().Add(time.Hour)), crl)
	try("all replaced", "", "")
	copyFile(t, after.Revoke(t, dir, "c.crl", time.Now().Add(time.Hour), second.Serial), crl)
	try("revoked", "was revoked at", "bad certificate")
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What cannot be read is an error before anybody is talked to.
func TestFilesThatAreNone(t *testing.T) {
	ours := authority.New(t, "ours")
	dir := t.TempDir()
	leaf := ours.Issue(t, dir, authority.Leaf{Name: "a"})
	nonsense := dir + "/nonsense"
	if err := os.WriteFile(nonsense, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		files pki.Files
		want  string
	}{
		{pki.Files{CA: dir + "/none"}, "authorities: open " + dir + "/none: no such file"},
		{pki.Files{CA: nonsense}, nonsense + ": no certificate in it"},
		{pki.Files{Cert: leaf.Cert, Key: nonsense}, "certificate " + leaf.Cert},
		{pki.Files{Cert: leaf.Cert, Key: ours.Issue(t, dir, authority.Leaf{Name: "b"}).Key}, "private key does not match"},
		{pki.Files{CRL: nonsense}, "revocation lists: " + nonsense},
	} {
		_, _, err := tt.files.Client(pki.Peer{Name: "a"})
		wantError(t, "client", err, tt.want)
	}
	_, err := pki.Files{CA: ours.CA}.Server()
	wantError(t, "server", err, "a server needs a certificate")
	if big.NewInt(0).Cmp(leaf.Serial) == 0 {
		t.Error("no serial number")
	}
}
