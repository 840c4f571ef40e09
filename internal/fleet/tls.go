// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
)

// server makes the configuration of a listener, whose files are read again when they are rotated. Clients must show a
// certificate, or may do so when they can prove themselves otherwise.
func (t *TLS) server(log *slog.Logger, mustShow bool, protocols ...string) (*tls.Config, error) {
	paths := []string{t.CertFile, t.KeyFile}
	if t.ClientCAFile != "" {
		paths = append(paths, t.ClientCAFile)
	}
	if t.CRLFile != "" {
		paths = append(paths, t.CRLFile)
	}
	loaded, err := open(log, func(contents [][]byte) (*tls.Config, error) {
		certificate, err := tls.X509KeyPair(contents[0], contents[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %v", t.CertFile, err)
		}
		c := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protocols, Certificates: []tls.Certificate{certificate}}
		if t.ClientCAFile == "" {
			return c, nil
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
		if mustShow {
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(contents[2]) {
			return nil, fmt.Errorf("%s: holds no certificate", t.ClientCAFile)
		}
		if t.CRLFile == "" {
			return c, nil
		}
		list, err := revocations(contents[3])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.CRLFile, err)
		}
		c.VerifyConnection = func(state tls.ConnectionState) error { return revoked(list, state, time.Now()) }
		return c, nil
	}, paths...)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return loaded.get(), nil },
	}, nil
}

func revocations(data []byte) (*x509.RevocationList, error) {
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fmt.Errorf("not a revocation list: %v", err)
	}
	return list, nil
}

// revoked judges the client's certificate. A list that is not its issuer's, or out of date, says nothing about it: refused.
func revoked(list *x509.RevocationList, state tls.ConnectionState, now time.Time) error {
	if len(state.VerifiedChains) == 0 {
		return nil // it showed none
	}
	chain := state.VerifiedChains[0]
	if len(chain) < 2 || list.CheckSignatureFrom(chain[1]) != nil {
		return errors.New("crl_file is not of the issuer of the client's certificate")
	}
	if !list.NextUpdate.IsZero() && now.After(list.NextUpdate) {
		return fmt.Errorf("crl_file is out of date since %s", list.NextUpdate.UTC().Format(time.RFC3339))
	}
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(chain[0].SerialNumber) == 0 {
			return fmt.Errorf("the client's certificate %s is revoked", chain[0].SerialNumber)
		}
	}
	return nil
}

// handshakes tells of those that fail: what the client hears of it is often no more than that the connection broke.
type handshakes struct {
	credentials.TransportCredentials
	log      *slog.Logger
	counters *counters
}

func (h *handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ServerHandshake(raw)
	if err != nil && !errors.Is(err, io.EOF) { // who says nothing is a load balancer that looks
		h.counters.denied.Inc()
		h.log.Warn("daemon refused", "address", raw.RemoteAddr().String(), "err", err)
	}
	return conn, info, err
}

func (h *handshakes) Clone() credentials.TransportCredentials {
	return &handshakes{h.TransportCredentials.Clone(), h.log, h.counters}
}
