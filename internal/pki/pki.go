// SPDX-License-Identifier: Apache-2.0

// Package pki makes TLS configurations of files that may be replaced at any time: they are read for each connection, so
// whoever rotates a certificate has nothing to restart. Both sides refuse what is expired, of another authority, for
// another name, or revoked, and say which.
package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Files are PEM. An empty name is none.
type Files struct {
	CA        string // authorities of the other side; none: the system's, for a client
	Cert, Key string // our own
	CRL       string // revocation lists of the authorities, PEM or DER; none: nothing is revoked
}

// Peer is who a server must be: one of the two.
type Peer struct {
	Name     string // DNS name or address in its certificate
	SPIFFEID string // the URI in its certificate
}

// Client reads the files and returns the configuration of one connection to peer.
func (f Files) Client(peer Peer) (*tls.Config, error) {
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: peer.Name, RootCAs: c.authorities}
	if c.own != nil {
		config.Certificates = []tls.Certificate{*c.own}
	}
	config.VerifyConnection = func(s tls.ConnectionState) error { return c.lists.check(s.VerifiedChains) }
	if peer.SPIFFEID != "" {
		// A workload's certificate has no name to verify; all else is verified below.
		config.InsecureSkipVerify = true //nolint:gosec // see VerifyConnection
		config.VerifyConnection = func(s tls.ConnectionState) error { return c.verifySPIFFE(s.PeerCertificates, peer.SPIFFEID) }
	}
	return config, nil
}

// Server returns a configuration that reads the files for each connection. With a CA, clients must have a certificate of
// it. An error is of the files as they are now: a server should not start with them.
func (f Files) Server() (*tls.Config, error) {
	if _, err := f.server(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.server() },
	}, nil
}

func (f Files) server() (*tls.Config, error) {
	if f.Cert == "" {
		return nil, errors.New("a server needs a certificate")
	}
	c, err := f.load()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*c.own}, ClientCAs: c.authorities,
		NextProtos: []string{"h2", "http/1.1"},
		// A resumed session would not be verified again.
		SessionTicketsDisabled: true,
	}
	if f.CA != "" {
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.VerifyConnection = func(s tls.ConnectionState) error { return c.lists.check(s.VerifiedChains) }
	}
	return config, nil
}

// contents are what the files held at one moment.
type contents struct {
	authorities *x509.CertPool // nil: the system's
	own         *tls.Certificate
	lists       *lists // nil: nothing is revoked
}

func (f Files) load() (contents, error) {
	var c contents
	if f.CA != "" {
		data, err := os.ReadFile(f.CA)
		if err != nil {
			return c, fmt.Errorf("authorities: %w", err)
		}
		c.authorities = x509.NewCertPool()
		if !c.authorities.AppendCertsFromPEM(data) {
			return c, fmt.Errorf("authorities: %s: no certificate in it", f.CA)
		}
	}
	if f.Cert != "" {
		own, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return c, fmt.Errorf("certificate %s and key %s: %w", f.Cert, f.Key, err)
		}
		c.own = &own
	}
	if f.CRL != "" {
		var err error
		if c.lists, err = readLists(f.CRL); err != nil {
			return c, fmt.Errorf("revocation lists: %w", err)
		}
	}
	return c, nil
}

// verifySPIFFE stands for the verification by name, as SPIFFE has it (X509-SVID, section 5): a chain to an authority, and
// the id as the only URI.
func (c contents) verifySPIFFE(certs []*x509.Certificate, id string) error {
	if len(certs) == 0 {
		return errors.New("the server has no certificate")
	}
	opts := x509.VerifyOptions{Roots: c.authorities, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, cert := range certs[1:] {
		opts.Intermediates.AddCert(cert)
	}
	chains, err := certs[0].Verify(opts)
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: certs, Err: err}
	}
	if uris := certs[0].URIs; len(uris) != 1 || uris[0].String() != id {
		return fmt.Errorf("the certificate is for %v, not for %s", uris, id)
	}
	return c.lists.check(chains)
}
