// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Conn is what one dial gives: a connection of its own, closed when its stream ends.
type Conn interface {
	grpc.ClientConnInterface
	io.Closer
}

// standing is a Conn that may be asked whether the server is still one to talk to.
type standing interface{ Revoked() error }

// revocable is a connection that a revocation list may end.
type revocable struct {
	*grpc.ClientConn
	revoked func() error
}

func (c revocable) Revoked() error { return c.revoked() }

// A stock gRPC server counts a ping more often than every five minutes as abuse and ends the
// connection after two (grpc.io, keepalive EnforcementPolicy.MinTime). A dead peer is noticed sooner
// all the same: with keepalive on, grpc-go sets TCP_USER_TIMEOUT to keepaliveTimeout, and a heartbeat
// is on its way at least every maxHeartbeat.
const (
	keepaliveTime    = 6 * time.Minute
	keepaliveTimeout = 20 * time.Second
)

// Dialer connects to a server at host:port, or another target of gRPC's.
type Dialer struct {
	// Credentials are asked for before each connection: files may have been replaced since. revoked is asked while it
	// stands, and may be nil.
	Credentials func(address string) (_ credentials.TransportCredentials, revoked func() error, err error)
	// TokenFile holds a bearer token, read for each call. Empty: none is sent.
	TokenFile string
	Options   []grpc.DialOption
}

// Dial is for Options.Dial.
func (d Dialer) Dial(_ context.Context, address string) (Conn, error) {
	creds, revoked, err := d.Credentials(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		// Retries are ours: a retried Connect would repeat a SyncRequest that is out of date.
		grpc.WithDisableRetry(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	}, d.Options...)
	if d.TokenFile != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(tokenFile(d.TokenFile)))
	}
	// passthrough leaves the name to the dialer among Options, if there is one.
	conn, err := grpc.NewClient("passthrough:///"+address, opts...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	if revoked != nil {
		return revocable{conn, revoked}, nil
	}
	return conn, nil
}

// maxTokenBytes is what a header may hold.
const maxTokenBytes = 16 << 10

// tokenFile is a bearer token (RFC 6750) in a file that may be replaced at any time.
type tokenFile string

func (f tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	data, err := os.ReadFile(string(f))
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	token := bytes.TrimSpace(data)
	switch {
	case len(token) == 0:
		return nil, fmt.Errorf("token: %s: empty", string(f))
	case len(token) > maxTokenBytes:
		return nil, fmt.Errorf("token: %s: larger than %d bytes", string(f), maxTokenBytes)
	case bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return nil, errors.New("token: " + string(f) + ": not one word of ASCII")
	}
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

// RequireTransportSecurity is for config to say, which permits plaintext to this host.
func (tokenFile) RequireTransportSecurity() bool { return false }
