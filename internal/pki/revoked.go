// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"
)

// removeFromCRL is the reason of an entry that takes a hold back (RFC 5280, section 5.3.1).
const removeFromCRL = 8

// Lists are the revocation lists of one file. Nil has none and revokes nothing.
type Lists struct {
	path  string
	lists []*x509.RevocationList
}

// ReadLists reads a file of revocation lists, PEM or DER.
func ReadLists(path string) (*Lists, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ParseLists(path, data)
}

// ParseLists reads what a file holds; path is for what is said of it.
func ParseLists(path string, data []byte) (*Lists, error) {
	l := &Lists{path: path}
	block, rest := pem.Decode(data)
	if block == nil {
		block, rest = &pem.Block{Bytes: data}, nil
	}
	for ; block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		l.lists = append(l.lists, list)
	}
	return l, nil
}

// Check wants one chain of which nothing is revoked. Who gives lists relies on them: one that is missing for the
// certificate's own issuer, or that is out of date, permits nothing.
func (l *Lists) Check(chains [][]*x509.Certificate) error {
	if l == nil {
		return nil
	}
	err := fmt.Errorf("revocation lists in %s: no chain to check", l.path)
	for _, chain := range chains {
		if err = l.checkChain(chain, time.Now()); err == nil {
			return nil
		}
	}
	return err
}

func (l *Lists) checkChain(chain []*x509.Certificate, now time.Time) error {
	for i := range len(chain) - 1 {
		issuer := chain[i+1]
		list := l.of(issuer)
		switch {
		case list == nil && i == 0:
			return fmt.Errorf("%s has no revocation list of %s", l.path, issuer.Subject)
		case list == nil:
			continue
		case !list.NextUpdate.IsZero() && now.After(list.NextUpdate):
			return fmt.Errorf("the revocation list of %s in %s is out of date since %s", issuer.Subject, l.path, list.NextUpdate.Format(time.RFC3339))
		}
		if err := revoked(list, chain[i]); err != nil {
			return err
		}
	}
	return nil
}

// Revoked tells whether a certificate of each chain is revoked, be a list out of date or missing. It is for connections that
// stand: what speaks against a new one is no reason to end them, unless it is said of them.
func (l *Lists) Revoked(chains [][]*x509.Certificate) error {
	var first error
	for _, chain := range chains {
		err := l.revokedIn(chain)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (l *Lists) revokedIn(chain []*x509.Certificate) error {
	if l == nil {
		return nil
	}
	for i := range len(chain) - 1 {
		if list := l.of(chain[i+1]); list != nil {
			if err := revoked(list, chain[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func revoked(list *x509.RevocationList, cert *x509.Certificate) error {
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 && entry.ReasonCode != removeFromCRL {
			return fmt.Errorf("the certificate of %s, serial number %s, was revoked at %s",
				holder(cert), cert.SerialNumber, entry.RevocationTime.Format(time.RFC3339))
		}
	}
	return nil
}

// holder is whose certificate it is: those of workloads have no subject.
func holder(cert *x509.Certificate) string {
	switch {
	case cert.Subject.String() != "":
		return cert.Subject.String()
	case len(cert.URIs) > 0:
		return cert.URIs[0].String()
	case len(cert.DNSNames) > 0:
		return cert.DNSNames[0]
	}
	return "nobody"
}

// of finds the newest list that issuer has signed.
func (l *Lists) of(issuer *x509.Certificate) *x509.RevocationList {
	var newest *x509.RevocationList
	for _, list := range l.lists {
		if bytes.Equal(list.RawIssuer, issuer.RawSubject) && list.CheckSignatureFrom(issuer) == nil &&
			(newest == nil || list.ThisUpdate.After(newest.ThisUpdate)) {
			newest = list
		}
	}
	return newest
}
