// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/controlplane/controlplanetest"
)

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := new(authority)
	made := a.sign(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.certificate, a.key = made.Leaf, made.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// sign makes a certificate; the first signs itself.
func (a *authority) sign(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// A daemon is who its certificate says, by a name that Authorize compares; one without, or of another authority, does not
// get that far.
func TestAuthorizeByCertificate(t *testing.T) {
	ca := newAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.certificate)
	plane, err := controlplane.New(controlplane.Options{Authorize: func(_ context.Context, p controlplane.Peer) error {
		if !slices.Contains(p.Names(), "spiffe://example.org/netfenced/"+p.DaemonID) {
			return errors.New("the certificate is not that daemon's")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(controlplane.ServerOptions(), grpc.WaitForHandlers(true), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{ca.sign(t, &x509.Certificate{DNSNames: []string{"plane"}})},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pool,
	})))...)
	plane.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := plane.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()

	id, err := url.Parse("spiffe://example.org/netfenced/host-1")
	if err != nil {
		t.Fatal(err)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	own := ca.sign(t, &x509.Certificate{URIs: []*url.URL{id}, ExtKeyUsage: usage})
	for _, tt := range []struct {
		name, daemon string
		certificates []tls.Certificate
		want         codes.Code
	}{
		{"its own", "host-1", []tls.Certificate{own}, codes.OK},
		{"another's id", "host-2", []tls.Certificate{own}, codes.PermissionDenied},
		{"no name", "host-1", []tls.Certificate{ca.sign(t, &x509.Certificate{ExtKeyUsage: usage})}, codes.PermissionDenied},
		{"no certificate", "host-1", nil, codes.Unavailable},
		{"of another authority", "host-1",
			[]tls.Certificate{newAuthority(t).sign(t, &x509.Certificate{URIs: []*url.URL{id}, ExtKeyUsage: usage})}, codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
				RootCAs: pool, ServerName: "plane", Certificates: tt.certificates,
			})))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			d := controlplanetest.New(conn, controlplanetest.Config{ID: tt.daemon})
			defer d.Disconnect()
			if err := d.Reconnect(); status.Code(err) != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}
