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

// lists are the revocation lists of one file. Nil has none and revokes nothing.
type lists struct {
	path  string
	lists []*x509.RevocationList
}

func readLists(path string) (*lists, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l := &lists{path: path}
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

// check wants one chain of which nothing is revoked. Who gives lists relies on them: one that is missing for the
// certificate's own issuer, or that is out of date, permits nothing.
func (l *lists) check(chains [][]*x509.Certificate) error {
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

func (l *lists) checkChain(chain []*x509.Certificate, now time.Time) error {
	for i := range len(chain) - 1 {
		cert, issuer := chain[i], chain[i+1]
		list := l.of(issuer)
		switch {
		case list == nil && i == 0:
			return fmt.Errorf("%s has no revocation list of %s", l.path, issuer.Subject)
		case list == nil:
			continue
		case !list.NextUpdate.IsZero() && now.After(list.NextUpdate):
			return fmt.Errorf("the revocation list of %s in %s is out of date since %s", issuer.Subject, l.path, list.NextUpdate.Format(time.RFC3339))
		}
		for _, entry := range list.RevokedCertificateEntries {
			if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 && entry.ReasonCode != removeFromCRL {
				return fmt.Errorf("the certificate of %s, serial number %s, was revoked at %s",
					cert.Subject, cert.SerialNumber, entry.RevocationTime.Format(time.RFC3339))
			}
		}
	}
	return nil
}

// of finds the newest list that issuer has signed.
func (l *lists) of(issuer *x509.Certificate) *x509.RevocationList {
	var newest *x509.RevocationList
	for _, list := range l.lists {
		if bytes.Equal(list.RawIssuer, issuer.RawSubject) && list.CheckSignatureFrom(issuer) == nil &&
			(newest == nil || list.ThisUpdate.After(newest.ThisUpdate)) {
			newest = list
		}
	}
	return newest
}
