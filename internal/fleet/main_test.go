// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served is a server that runs for a test.
type served struct {
	*Server
	t      *testing.T
	dir    string // of everything
	admin  string // token
	reader string // token of one who may only look
	log    *logged
	tls    *tls.Config // for its API; nil: plaintext
}

// logged is a log that a test reads while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// serve writes a configuration over a folder of policies, loads it and serves it until the test ends. {dir} stands for
// the test's directory.
func serve(t *testing.T, config string, edit ...func(dir string)) *served {
	t.Helper()
	s := &served{t: t, dir: t.TempDir(), log: &logged{}}
	if err := os.Mkdir(filepath.Join(s.dir, "policies"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.admin, s.reader = s.token("admins", "alice", false), s.token("admins", "prometheus", true)
	for _, e := range edit {
		e(s.dir)
	}
	if !strings.Contains(config, "policies:") {
		config += "\npolicies: dir://{dir}/policies"
	}
	if !strings.Contains(config, "api:") {
		config += "\napi: {listen: '127.0.0.1:0', tokens_file: '{dir}/admins'}"
	}
	if !strings.Contains(config, "\nlisten:") {
		config += "\nlisten: 127.0.0.1:0"
	}
	s.write("control.yaml", strings.ReplaceAll(config, "{dir}", s.dir))
	c, err := Load(filepath.Join(s.dir, "control.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(s.log, t.Output()), nil))
	if s.Server, err = Open(c, "test", log); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

// write puts a file into place at once.
func (s *served) write(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	draft := filepath.Join(s.dir, ".draft")
	if err := os.WriteFile(draft, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(draft, path); err != nil {
		s.t.Fatal(err)
	}
}

func (s *served) token(file, name string, read bool) string {
	s.t.Helper()
	token, err := NewToken(filepath.Join(s.dir, file), name, read)
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// response is an answer, read.
type response struct {
	*http.Response
	body []byte
}

func (r response) String() string { return fmt.Sprintf("%s: %s", r.Status, bytes.TrimSpace(r.body)) }

// request asks the API. Headers are pairs.
func (s *served) request(token, method, path, body string, headers ...string) response {
	s.t.Helper()
	client, scheme := &http.Client{Transport: &http.Transport{TLSClientConfig: s.tls, DisableKeepAlives: true}}, "http"
	if s.tls != nil {
		scheme = "https"
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, scheme+"://"+s.APIAddress()+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answered, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answered.Body.Close()
	read, err := io.ReadAll(answered.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response{answered, read}
}

// list asks for what a path lists under its last word.
func list[T any](s *served, path string) []T {
	s.t.Helper()
	r := s.request(s.admin, "GET", path, "")
	var body map[string][]T
	if err := json.Unmarshal(r.body, &body); err != nil || r.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %v: %v", path, r, err)
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(path, "/v1/"), "?")
	return body[name]
}

// eventually asks until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.After(controlplanetest.Patience)
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for !so() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("it did not come to pass: %s", what)
		}
	}
}

// dial opens a connection for a daemon; nil: in plaintext.
func (s *served) dial(config *tls.Config) *grpc.ClientConn {
	s.t.Helper()
	using := insecure.NewCredentials()
	if config != nil {
		using = credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient(s.Address(), grpc.WithTransportCredentials(using))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return conn
}

// allows tells whether a policy allows an address.
func allows(address string) func(*policy.Policy) bool {
	return func(p *policy.Policy) bool {
		return p != nil && len(p.Allow) == 1 && p.Allow[0].Prefix.String() == address
	}
}
