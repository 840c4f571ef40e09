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
	"sync"
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

// Connection is one that may be asked for again while it stands.
type Connection struct {
	crl string

	mu     sync.Mutex
	chains [][]*x509.Certificate // of the server, as they were verified
}

// Revoked reads the revocation lists again, and tells whether the server's certificate is revoked by now. A file that cannot
// be read says nothing of it; it will of the next connection.
func (c *Connection) Revoked() error {
	if c.crl == "" {
		return nil
	}
	lists, err := ReadLists(c.crl)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return lists.Revoked(c.chains)
}

// verified notes the chains of the handshake if it has gone well.
func (c *Connection) verified(chains [][]*x509.Certificate, err error) error {
	if err == nil {
		c.mu.Lock()
		c.chains = chains
		c.mu.Unlock()
	}
	return err
}

// Client reads the files and returns the configuration of one connection to peer, and that connection once it stands.
func (f Files) Client(peer Peer) (*tls.Config, *Connection, error) {
	c, err := f.load()
	if err != nil {
		return nil, nil, err
	}
	connection := &Connection{crl: f.CRL}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: peer.Name, RootCAs: c.authorities}
	if c.own != nil {
		config.Certificates = []tls.Certificate{*c.own}
	}
	config.VerifyConnection = func(s tls.ConnectionState) error {
		return connection.verified(s.VerifiedChains, c.lists.Check(s.VerifiedChains))
	}
	if peer.SPIFFEID != "" {
		// A workload's certificate has no name to verify; all else is verified below.
		config.InsecureSkipVerify = true //nolint:gosec // see VerifyConnection
		config.VerifyConnection = func(s tls.ConnectionState) error {
			return connection.verified(c.verifySPIFFE(s.PeerCertificates, peer.SPIFFEID))
		}
	}
	return config, connection, nil
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
		config.VerifyConnection = func(s tls.ConnectionState) error { return c.lists.Check(s.VerifiedChains) }
	}
	return config, nil
}

// contents are what the files held at one moment.
type contents struct {
	authorities *x509.CertPool // nil: the system's
	own         *tls.Certificate
	lists       *Lists // nil: nothing is revoked
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
		if c.lists, err = ReadLists(f.CRL); err != nil {
			return c, fmt.Errorf("revocation lists: %w", err)
		}
	}
	return c, nil
}

// verifySPIFFE stands for the verification by name, as SPIFFE has it (X509-SVID, section 5): a chain to an authority, and
// the id as the only URI.
func (c contents) verifySPIFFE(certs []*x509.Certificate, id string) ([][]*x509.Certificate, error) {
	if len(certs) == 0 {
		return nil, errors.New("the server has no certificate")
	}
	opts := x509.VerifyOptions{Roots: c.authorities, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, cert := range certs[1:] {
		opts.Intermediates.AddCert(cert)
	}
	chains, err := certs[0].Verify(opts)
	if err != nil {
		return nil, &tls.CertificateVerificationError{UnverifiedCertificates: certs, Err: err}
	}
	if uris := certs[0].URIs; len(uris) != 1 || uris[0].String() != id {
		return nil, fmt.Errorf("the certificate is for %v, not for %s", uris, id)
	}
	return chains, c.lists.Check(chains)
}
