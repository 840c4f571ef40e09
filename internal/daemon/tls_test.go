// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/pki"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/internal/testenv/authority"
)

// guarded is a control plane that wants a token.
type guarded struct {
	blocker
	token string
}

func (g guarded) Connect(stream grpc.BidiStreamingServer[netfencev1.DaemonEvent, netfencev1.ControlCommand]) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("authorization")) != 1 || md.Get("authorization")[0] != "Bearer "+g.token {
		return status.Error(codes.Unauthenticated, "no such token")
	}
	return g.blocker.Connect(stream)
}

// served is a control plane at an address, by TLS, until its stop is called.
func served(t *testing.T, listener net.Listener, plane netfencev1.ControlPlaneServer, files pki.Files) (stop func()) {
	t.Helper()
	config, err := files.Server()
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	netfencev1.RegisterControlPlaneServer(server, plane)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { server.Stop(); serving.Wait() })
	t.Cleanup(stop)
	return stop
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func (i *instance) status(t *testing.T) *netfencev1.DaemonStatus {
	t.Helper()
	st, err := i.client.GetStatus(t.Context(), &emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// becomes waits until the daemon is connected, for want "", or says why it is not.
func (i *instance) becomes(t *testing.T, what, want string) {
	t.Helper()
	var last *netfencev1.DaemonStatus
	defer func() {
		if t.Failed() {
			t.Logf("%s: %v", what, last)
		}
	}()
	testenv.Eventually(t, what, func() bool {
		last = i.status(t)
		if want == "" {
			return last.GetControlPlaneState() == netfencev1.ConnectionState_CONNECTION_STATE_CONNECTED
		}
		return strings.Contains(strings.Join(last.GetProblems(), "\n"), want)
	})
}

// Mutual TLS, a token and two addresses. All files are replaced under the running daemon, which says what is wrong with
// them, and goes on with what is right.
func TestControlPlaneByTLS(t *testing.T) {
	ours := authority.New(t, "ours")
	dir := t.TempDir()
	server := ours.Issue(t, dir, authority.Leaf{Name: "control", IP: net.IPv4(127, 0, 0, 1)})
	wrong := ours.Issue(t, dir, authority.Leaf{Name: "wrong", DNS: "else.example"})
	daemon := ours.Issue(t, dir, authority.Leaf{Name: "daemon"})
	late := ours.Issue(t, dir, authority.Leaf{Name: "late", NotAfter: time.Now().Add(-time.Minute)})
	crl, token := ours.Revoke(t, dir, "crl.pem", time.Now().Add(time.Hour)), filepath.Join(dir, "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	replace := func(path, with string) {
		t.Helper()
		data, err := os.ReadFile(with)
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	keep := func(path string) string {
		t.Helper()
		replace(path+".kept", path)
		return path + ".kept"
	}

	first, second := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	addresses := []string{first.Addr().String(), second.Addr().String()}
	files := pki.Files{Cert: server.Cert, Key: server.Key, CA: ours.CA}
	stopFirst := served(t, first, guarded{token: "secret"}, files)

	i := newInstance(t)
	i.config.ControlPlane.URL = config.Endpoint{Addresses: addresses}
	i.config.ControlPlane.TLS = config.TLS{CAFile: ours.CA, CertFile: daemon.Cert, KeyFile: daemon.Key, CRLFile: crl}
	i.config.ControlPlane.TokenFile = token
	write("secret\n")
	i.start(t)
	i.becomes(t, "connected to the first", "")
	if got := i.status(t).GetControlPlaneAddress(); got != addresses[0] {
		t.Errorf("connected to %s, want %s", got, addresses[0])
	}

	// The first goes, the second comes: without the first's token at first, then with it.
	write("other\n")
	stopFirst()
	served(t, second, guarded{token: "secret"}, files)
	i.becomes(t, "refused for its token", "no such token")
	write("secret\n")
	i.becomes(t, "connected to the second", "")
	if got := i.status(t).GetControlPlaneAddress(); got != addresses[1] {
		t.Errorf("connected to %s, want %s", got, addresses[1])
	}

	// A stream that stands ends when the server's certificate is revoked.
	ours.Revoke(t, dir, "crl.pem", time.Now().Add(time.Hour), server.Serial)
	i.becomes(t, "a server that is revoked while a stream stands", "the certificate of CN=control, serial number "+server.Serial.String()+", was revoked at")
	ours.Revoke(t, dir, "crl.pem", time.Now().Add(time.Hour))
	i.becomes(t, "connected again", "")

	// Each of these is said, and mended under the daemon that said it. What is wrong with a file alone ends no stream.
	certificate, key, list := keep(server.Cert), keep(server.Key), keep(crl)
	own, ownKey := keep(daemon.Cert), keep(daemon.Key)
	for _, tt := range []struct {
		what        string
		spoil, mend func()
		want        string
	}{
		{
			"a server of another name",
			func() { replace(server.Cert, wrong.Cert); replace(server.Key, wrong.Key) },
			func() { replace(server.Cert, certificate); replace(server.Key, key) },
			"x509: cannot validate certificate for 127.0.0.1",
		},
		{
			"a server that is revoked",
			func() { ours.Revoke(t, dir, "crl.pem", time.Now().Add(time.Hour), server.Serial) },
			func() { replace(crl, list) },
			"the certificate of CN=control, serial number " + server.Serial.String() + ", was revoked at",
		},
		{
			"a daemon whose certificate has expired",
			func() { replace(daemon.Cert, late.Cert); replace(daemon.Key, late.Key) },
			func() { replace(daemon.Cert, own); replace(daemon.Key, ownKey) },
			"expired certificate",
		},
		{
			"a file that is not there",
			func() { write("") },
			func() { write("secret") },
			"token: " + token + ": empty",
		},
	} {
		tt.spoil()
		i.stop()
		i.start(t)
		i.becomes(t, tt.what, tt.want)
		tt.mend()
		i.becomes(t, "mended: "+tt.what, "")
	}
}
