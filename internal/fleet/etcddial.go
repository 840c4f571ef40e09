// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

const (
	keepaliveTime    = 5 * time.Second
	keepaliveTimeout = 3 * time.Second
)

// etcdDialer makes the client. With a password that takes an answer of etcd's, so it is made when there is one: a server
// starts, and serves what it can, without.
type etcdDialer struct {
	config   clientv3.Config
	password string // file; empty: none

	mu  sync.Mutex
	now *clientv3.Client // nil: none yet
}

func newEtcdDialer(c *Config, log *slog.Logger) (*etcdDialer, error) {
	d := &etcdDialer{password: c.Etcd.PasswordFile, config: clientv3.Config{
		Endpoints:            c.Policies.Endpoints,
		DialTimeout:          etcdTimeout, // of the login
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: retryMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: retryMax},
			MinConnectTimeout: retryMax,
		})},
		Username: c.Etcd.User,
		Logger:   zap.NewNop(), // what it has to say comes back as errors
	}}
	if _, err := d.readPassword(); err != nil {
		return nil, err
	}
	var err error
	d.config.TLS, err = c.Etcd.client(log)
	return d, err
}

func (d *etcdDialer) readPassword() (string, error) {
	if d.password == "" {
		return "", nil
	}
	password, err := os.ReadFile(d.password)
	if err != nil {
		return "", fmt.Errorf("etcd.password_file %s: %w", d.password, plain(err))
	}
	return strings.TrimSpace(string(password)), nil
}

// connect makes the client if there is none. It is for one goroutine.
func (d *etcdDialer) connect(ctx context.Context) error {
	if _, err := d.client(); err == nil {
		return nil
	}
	config := d.config
	config.Context = ctx
	var err error
	if config.Password, err = d.readPassword(); err != nil {
		return err
	}
	client, err := clientv3.New(config)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = client
	return nil
}

// client is that of now.
func (d *etcdDialer) client() (*clientv3.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil {
		return nil, errors.New("etcd: not connected")
	}
	return d.now, nil
}

// drop has the client made anew. Calls of it that are under way fail.
func (d *etcdDialer) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now != nil {
		_ = d.now.Close() // its context may be over, which is all that it says
		d.now = nil
	}
}

// logout has whoever logged in do so anew, after anything that went wrong, with the password as it is by then. A login is
// lost when etcd restarts, and before 3.5 it refuses another one to who still shows the lost one, which the client does.
func (d *etcdDialer) logout() {
	if d.password != "" {
		d.drop()
	}
}

// client is nil for plaintext.
func (e *Etcd) client(log *slog.Logger) (*tls.Config, error) {
	if !e.tls() {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CAFile != "" {
		data, err := os.ReadFile(e.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd.ca_file %s: %w", e.CAFile, plain(err))
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("etcd.ca_file %s: holds no certificate", e.CAFile)
		}
	}
	if e.CertFile != "" {
		loaded, err := open(log, func(contents [][]byte) (*tls.Certificate, error) {
			certificate, err := tls.X509KeyPair(contents[0], contents[1])
			if err != nil {
				return nil, fmt.Errorf("etcd.cert_file %s: %v", e.CertFile, err)
			}
			return &certificate, nil
		}, e.CertFile, e.KeyFile)
		if err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return loaded.get(), nil }
	}
	return c, nil
}
