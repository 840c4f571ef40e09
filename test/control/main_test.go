// SPDX-License-Identifier: Apache-2.0

// Package control_test lets real daemons follow real servers of netfence-control, which follow a real etcd, while each of
// them dies in turn.
package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// fleet is three members of etcd and three servers, in a namespace of their own, behind a load balancer.
type fleet struct {
	t       *testing.T
	ns      *testenv.NS
	members [3]*program
	servers [3]*server
	http    *http.Client // within the namespace
}

// program is a process that may be killed and started again, with what it keeps.
type program struct {
	t       *testing.T
	ns      *testenv.NS
	command []string
	process *exec.Cmd
	said    said
}

// said is what a program wrote, over all its starts.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (p *program) start() {
	p.t.Helper()
	p.process = exec.Command(p.command[0], p.command[1:]...)
	p.process.Stdout, p.process.Stderr = &p.said, &p.said
	testenv.Start(p.t, p.process, p.ns, nil)
}

// kill is kill -9.
func (p *program) kill() {
	p.t.Helper()
	if err := p.process.Process.Kill(); err != nil {
		p.t.Fatalf("%s had ended: %v\n%s", p.command[0], err, p.said.String())
	}
	_ = p.process.Wait() // by that signal
}

// server is one netfence-control.
type server struct {
	program
	address string // for daemons
	api     string
	audit   string
	admin   string // token
}

// newFleet starts everything. Daemons find it at port 7444 of every address of the namespace.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, ns: testenv.NewNS(t)}
	f.http = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			f.ns.Do(func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, address) })
			return conn, err
		},
	}}
	var cluster, endpoints []string
	for i := range f.members {
		cluster = append(cluster, fmt.Sprintf("m%d=http://%s:2380", i, host(i)))
		endpoints = append(endpoints, host(i)+":2379")
	}
	dir := t.TempDir()
	for i := range f.members {
		client, peer := fmt.Sprintf("http://%s:2379", host(i)), fmt.Sprintf("http://%s:2380", host(i))
		f.members[i] = &program{t: t, ns: f.ns, command: []string{
			"etcd", "--name", fmt.Sprintf("m%d", i), "--data-dir", filepath.Join(dir, fmt.Sprintf("m%d", i)), "--logger", "zap", "--log-level", "error",
			"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(cluster, ","), "--heartbeat-interval", "200", "--election-timeout", "2000",
		}}
		f.members[i].start()
	}
	binary := harness.Build(t, "netfence-control")
	for i := range f.servers {
		path := func(name string) string { return filepath.Join(dir, fmt.Sprintf("server%d.%s", i, name)) }
		s := &server{address: host(i) + ":7443", api: host(i) + ":7480", audit: path("audit")}
		config := fmt.Sprintf("listen: %s\npolicies: etcd://%s/netfence/policies\napi: {listen: '%s', tokens_file: %s}\naudit_file: %s\n",
			s.address, strings.Join(endpoints, ","), s.api, path("admins"), s.audit)
		if err := os.WriteFile(path("yaml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		made, err := exec.Command(binary, "token", "--tokens-file", path("admins"), "alice").Output()
		if err != nil {
			t.Fatal(err)
		}
		s.admin = strings.TrimSpace(string(made))
		s.program = program{t: t, ns: f.ns, command: []string{binary, "serve", "--config", path("yaml")}}
		f.servers[i] = s
		s.start()
	}
	t.Cleanup(func() {
		if t.Failed() {
			for i := range f.servers {
				t.Logf("server %d said:\n%s", i, f.servers[i].said.String())
				t.Logf("member %d said:\n%s", i, f.members[i].said.String())
			}
		}
	})
	for _, s := range f.servers {
		f.ready(s)
	}
	f.balance()
	return f
}

// host is an address of the i-th member and the i-th server.
func host(i int) string { return fmt.Sprintf("127.0.0.%d", 11+i) }

func (f *fleet) ready(s *server) {
	f.t.Helper()
	deadline := time.Now().Add(6 * testenv.Patience) // an election, on a machine that is busy
	for {
		r, err := f.http.Get("http://" + s.api + "/readyz")
		if err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("server %s is not ready: %v\n%s", s.api, err, s.said.String())
		}
		<-time.After(20 * time.Millisecond)
	}
}

// balance passes connections to the servers in turn, to the next where one does not answer.
func (f *fleet) balance() {
	front := f.ns.Listen(f.t, "tcp", "0.0.0.0:7444")
	var next atomic.Uint32
	var passing sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	f.t.Cleanup(func() {
		cancel()
		_ = front.Close() // ends the loop
		passing.Wait()
	})
	passing.Go(func() {
		for {
			from, err := front.Accept()
			if err != nil {
				return
			}
			passing.Go(func() {
				defer from.Close()
				for range f.servers {
					to := f.servers[next.Add(1)%3].address
					var conn net.Conn
					var err error
					f.ns.Do(func() { conn, err = net.DialTimeout("tcp", to, time.Second) })
					if err == nil {
						pass(ctx, from, conn)
						return
					}
				}
			})
		}
	})
}

// pass joins two connections until one of them ends.
func pass(ctx context.Context, a, b net.Conn) {
	end := func() {
		_ = a.Close() // one of them ended by itself
		_ = b.Close()
	}
	stop := context.AfterFunc(ctx, end)
	defer stop()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // its error is that of the one that ended
			end()
		})
	}
	both.Wait()
}

// leader is the member that leads.
func (f *fleet) leader() int {
	f.t.Helper()
	var leader int
	testenv.Eventually(f.t, "a leader", func() bool {
		for i := range f.members {
			r, err := f.http.Post("http://"+host(i)+":2379/v3/maintenance/status", "application/json", strings.NewReader("{}"))
			if err != nil {
				continue // it is the one that was killed
			}
			var status struct {
				Header struct {
					Member string `json:"member_id"`
				}
				Leader string
			}
			err = json.NewDecoder(r.Body).Decode(&status)
			r.Body.Close()
			if err == nil && status.Leader != "" && status.Leader == status.Header.Member {
				leader = i
				return true
			}
		}
		return false
	})
	return leader
}
