// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/netfence/netfence/internal/pki"
)

// listening is a listener's configuration as its files have it.
type listening struct {
	*tls.Config
	lists *pki.Lists // nil: nothing is revoked
}

// server makes the configuration of a listener, whose files are read again when they are rotated. Clients must show a
// certificate, or may do so when they can prove themselves otherwise. Lists are the revocation lists as they are when it is called.
func (t *TLS) server(log *slog.Logger, mustShow bool, protocols ...string) (_ *tls.Config, lists func() *pki.Lists, err error) {
	paths := []string{t.CertFile, t.KeyFile}
	if t.ClientCAFile != "" {
		paths = append(paths, t.ClientCAFile)
	}
	if t.CRLFile != "" {
		paths = append(paths, t.CRLFile)
	}
	loaded, err := open(log, func(contents [][]byte) (listening, error) {
		certificate, err := tls.X509KeyPair(contents[0], contents[1])
		if err != nil {
			return listening{}, fmt.Errorf("%s: %v", t.CertFile, err)
		}
		c := listening{Config: &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: protocols, Certificates: []tls.Certificate{certificate},
			// A resumed session would not be verified again.
			SessionTicketsDisabled: true,
		}}
		if t.ClientCAFile == "" {
			return c, nil
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
		if mustShow {
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(contents[2]) {
			return listening{}, fmt.Errorf("%s: holds no certificate", t.ClientCAFile)
		}
		if t.CRLFile == "" {
			return c, nil
		}
		if c.lists, err = pki.ParseLists(t.CRLFile, contents[3]); err != nil {
			return listening{}, fmt.Errorf("crl_file: %w", err)
		}
		c.VerifyConnection = func(state tls.ConnectionState) error {
			if len(state.VerifiedChains) == 0 {
				return nil // it showed none
			}
			return c.lists.Check(state.VerifiedChains)
		}
		return c, nil
	}, paths...)
	if err != nil {
		return nil, nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return loaded.get().Config, nil },
	}, func() *pki.Lists { return loaded.get().lists }, nil
}

// handshakes tells of those that fail: what the client hears of it is often no more than that the connection broke.
type handshakes struct {
	credentials.TransportCredentials
	log      *slog.Logger
	counters *counters
}

func (h *handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	shaking := &unclosed{Conn: raw}
	conn, info, err := h.TransportCredentials.ServerHandshake(shaking)
	shaking.over.Store(true)
	var told *net.OpError
	switch {
	case err == nil:
	case errors.Is(err, io.EOF): // who says nothing is a load balancer that looks
	case errors.As(err, &told) && told.Op == "remote error":
		h.counters.denied.Inc()
		h.log.Warn("daemon refuses this server's certificate", "address", raw.RemoteAddr().String(), "err", err)
	default:
		h.counters.denied.Inc()
		h.log.Warn("daemon refused", "address", raw.RemoteAddr().String(), "err", err)
		linger(raw)
	}
	return conn, info, err
}

// unclosed is a connection that is not closed before its handshake is over, whoever gives it up in the midst of it.
type unclosed struct {
	net.Conn
	over atomic.Bool
}

func (c *unclosed) Close() error {
	if !c.over.Load() {
		return nil
	}
	return c.Conn.Close()
}

const (
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// linger has the client hear why it was refused. It has begun to talk already, as the handshake of TLS 1.3 is over for it
// before its certificate was looked at: to close a connection with something unread resets it, and the alert is lost.
func linger(raw net.Conn) {
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || raw.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, raw, lingerBytes) // whatever it says, it is refused
}

func (h *handshakes) Clone() credentials.TransportCredentials {
	return &handshakes{h.TransportCredentials.Clone(), h.log, h.counters}
}
