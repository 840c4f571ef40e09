// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

// member is an etcd of one, behind a line that a test may cut.
type member struct {
	t       *testing.T
	host    string // on loopback, of this test alone
	dir     string
	process *exec.Cmd
	line    *line
	client  *clientv3.Client // past the line
}

var members atomic.Uint32

func startEtcd(t *testing.T) *member {
	t.Helper()
	pid := uint32(os.Getpid())
	m := &member{t: t, dir: t.TempDir(), host: fmt.Sprintf("127.%d.%d.%d", 64+members.Add(1), pid>>8&0xff, pid&0xff|1)}
	m.start()
	m.line = newLine(t, m.host+":2379")
	var err error
	m.client, err = clientv3.New(clientv3.Config{Endpoints: []string{m.host + ":2379"}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.client.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *member) start() {
	m.t.Helper()
	client, peer := "http://"+m.host+":2379", "http://"+m.host+":2380"
	m.process = exec.Command("etcd", "--data-dir", m.dir, "--name", "one", "--log-level", "error",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one="+peer)
	m.process.Stderr = m.t.Output()
	if err := m.process.Start(); err != nil {
		m.t.Fatalf("%v (Debian: etcd-server)", err)
	}
	m.t.Cleanup(m.kill)
}

func (m *member) kill() {
	if m.process.ProcessState == nil {
		_ = m.process.Process.Kill() // it may have ended
		_ = m.process.Wait()         // by that signal
	}
}

// do gives etcd time to be there.
func (m *member) do(what func(ctx context.Context) error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), controlplanetest.Patience)
	defer cancel()
	if err := what(ctx); err != nil {
		m.t.Fatal(err)
	}
}

// put writes past the server.
func (m *member) put(name, text string) (revision int64) {
	m.t.Helper()
	m.do(func(ctx context.Context) error {
		done, err := m.client.Put(ctx, "/netfence/policies/"+name, text)
		if err == nil {
			revision = done.Header.Revision
		}
		return err
	})
	return revision
}

func (m *member) config() string {
	return "policies: etcd://" + m.line.address + "/netfence/policies\naudit_file: '{dir}/audit'"
}

// line passes connections on, as long as it is whole.
type line struct {
	address string
	mu      sync.Mutex
	cut     bool
	open    map[net.Conn]bool
	closed  bool
}

func newLine(t *testing.T, to string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{address: listener.Addr().String(), open: make(map[net.Conn]bool)}
	var running sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close() // ends the loop
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.set(true)
		running.Wait()
	})
	running.Go(func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			onward, err := net.Dial("tcp", to)
			if err != nil {
				_ = from.Close() // etcd is not there
				continue
			}
			l.mu.Lock()
			whole := !l.cut && !l.closed
			l.open[from], l.open[onward] = true, true
			l.mu.Unlock()
			if !whole {
				l.set(true)
			}
			for _, pair := range [][2]net.Conn{{from, onward}, {onward, from}} {
				running.Go(func() {
					_, _ = io.Copy(pair[0], pair[1]) // until either end goes
					_ = pair[0].Close()              // so that the other notices
				})
			}
		}
	})
	return l
}

// set cuts the line, with all connections, or mends it.
func (l *line) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for conn := range l.open {
			_ = conn.Close() // it may be closed already
		}
		clear(l.open)
	}
}

// TestEtcd: what is put through the API, or past it, is in force at daemons of any server; each change says what it
// found, and nobody overwrites what he has not seen.
func TestEtcd(t *testing.T) {
	m := startEtcd(t)
	s := serve(t, m.config())
	second := serve(t, m.config())
	eventually(t, "both are ready", func() bool { return s.store.err() == nil && second.store.err() == nil })
	d := controlplanetest.Connect(t, second.dial(nil), controlplanetest.Config{ID: "host-1"})
	id := d.Attach(t, "veth0", map[string]string{"tenant": "acme"})

	const path = "/v1/policies/acme.yaml"
	expect := func(r response, code int) response {
		t.Helper()
		if r.StatusCode != code {
			t.Fatalf("%s %s: %v, want %d", r.Request.Method, r.Request.Header, r, code)
		}
		return r
	}
	expect(s.request(s.admin, "PUT", path, acme), http.StatusPreconditionRequired)
	expect(s.request(s.admin, "PUT", path, acme, "If-Match", "*"), http.StatusPreconditionFailed)
	expect(s.request(s.admin, "DELETE", path, "", "If-Match", "*"), http.StatusPreconditionFailed)
	expect(s.request(s.reader, "PUT", path, acme, "If-None-Match", "*"), http.StatusForbidden)
	expect(s.request(s.admin, "GET", path, ""), http.StatusNotFound)
	made := expect(s.request(s.admin, "PUT", path, acme, "If-None-Match", "*"), http.StatusCreated)
	expect(s.request(s.admin, "PUT", path, acme, "If-None-Match", "*"), http.StatusPreconditionFailed)
	d.WaitPolicy(t, id, allows("192.0.2.1/32"))

	tag := made.Header.Get("ETag")
	if got := expect(second.request(second.reader, "GET", path, ""), http.StatusOK); string(got.body) != acme || got.Header.Get("ETag") != tag {
		t.Errorf("the other server has %v, want ETag %s", got, tag)
	}
	changed := expect(second.request(second.admin, "PUT", path, acme2, "If-Match", tag), http.StatusOK)
	d.WaitPolicy(t, id, allows("192.0.2.2/32"))
	expect(s.request(s.admin, "PUT", path, acme, "If-Match", tag), http.StatusPreconditionFailed)
	expect(s.request(s.admin, "PUT", path, acme, "If-Match", `"nonsense"`), http.StatusPreconditionFailed)
	var done changeRecord
	if err := json.Unmarshal(changed.body, &done); err != nil || `"`+done.OldRevision+`"` != tag || `"`+done.Revision+`"` != changed.Header.Get("ETag") {
		t.Errorf("the change says %s after %s: %v", changed.body, tag, err)
	}
	refused := expect(s.request(s.admin, "PUT", path, "mode: alowlist\n", "If-Match", "*"), http.StatusUnprocessableEntity)
	if !strings.Contains(string(refused.body), "alowlist") {
		t.Errorf("no reason: %v", refused)
	}
	expect(s.request(s.admin, "PUT", path, "#"+strings.Repeat("x", maxPolicy), "If-Match", "*"), http.StatusRequestEntityTooLarge)

	// A sets file that others need stays.
	expect(s.request(s.admin, "PUT", "/v1/policies/sets.yaml", "sets: {web: [192.0.2.9]}\n", "If-None-Match", "*"), http.StatusCreated)
	eventually(t, "the sets are known", func() bool { return len(s.source.Entries()) == 2 })
	expect(s.request(s.admin, "PUT", path, "match: {tenant: acme}\nmode: allowlist\nallow: ['set:web']\n", "If-Match", "*"), http.StatusOK)
	d.WaitPolicy(t, id, allows("192.0.2.9/32"))
	eventually(t, "its use is known", func() bool { return s.source.Check("sets.yaml", nil) != nil })
	expect(s.request(s.admin, "DELETE", "/v1/policies/sets.yaml", "", "If-Match", "*"), http.StatusUnprocessableEntity)

	// Past the API: broken, it is reported and changes nothing.
	m.put("acme.yaml", "mode: nonsense\n")
	eventually(t, "the broken value is reported", func() bool {
		listed := list[policyRecord](second, "/v1/policies")
		return len(listed) == 2 && strings.Contains(listed[0].Error, "nonsense")
	})
	if !allows("192.0.2.9/32")(d.Policy(id)) {
		t.Error("a broken value changed what is in force")
	}
	expect(s.request(s.admin, "DELETE", path, "", "If-Match", "*"), http.StatusOK)
	d.WaitPolicy(t, id, func(p *policy.Policy) bool { return p.Mode == policy.ModeBlockAll })

	audit, err := os.ReadFile(s.dir + "/audit")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"what":"put","policy":"acme.yaml","who":"alice"`, `"expected":"absent","outcome":"asked"`, `"outcome":"conflict","found":"` + strings.Trim(tag, `"`),
		`"outcome":"done","old_revision":"","new_revision":"` + strings.Trim(tag, `"`), `"outcome":"refused","reason":"policy acme.yaml`,
		`"what":"delete"`, `"what":"seen","policy":"acme.yaml"`,
	} {
		if !strings.Contains(string(audit), want) {
			t.Errorf("the audit log lacks %s", want)
		}
	}
}

// TestEtcdLost: what was known stays, and the server says that it may be out of date. What was compacted away meanwhile
// is made good.
func TestEtcdLost(t *testing.T) {
	m := startEtcd(t)
	m.put("acme.yaml", acme)
	s := serve(t, m.config())
	d := controlplanetest.Connect(t, s.dial(nil), controlplanetest.Config{ID: "host-1"})
	id := d.Subscribe("veth0", map[string]string{"tenant": "acme"})
	d.WaitPolicy(t, id, allows("192.0.2.1/32"))
	ready := func() int { return s.request("", "GET", "/readyz", "").StatusCode }
	eventually(t, "ready", func() bool { return ready() == http.StatusOK })

	m.line.set(true)
	m.put("acme.yaml", acme2)
	m.put("other.yaml", acme)
	last := m.put("acme.yaml", acme2)
	m.do(func(ctx context.Context) error {
		_, err := m.client.Compact(ctx, last, clientv3.WithCompactPhysical())
		return err
	})
	eventually(t, "it says that etcd is out of reach", func() bool { return ready() == http.StatusServiceUnavailable })
	later := d.Attach(t, "veth1", map[string]string{"tenant": "acme"})
	d.WaitPolicy(t, later, allows("192.0.2.1/32"))
	if r := s.request(s.admin, "PUT", "/v1/policies/acme.yaml", acme, "If-Match", "*"); r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("put without etcd: %v", r)
	}
	m.line.set(false)
	d.WaitPolicy(t, id, allows("192.0.2.2/32"))
	eventually(t, "ready again", func() bool { return ready() == http.StatusOK })

	// etcd itself dies and comes back.
	m.kill()
	eventually(t, "it says that etcd is gone", func() bool { return ready() == http.StatusServiceUnavailable })
	m.start()
	eventually(t, "ready once more", func() bool { return ready() == http.StatusOK })
	m.put("acme.yaml", acme)
	d.WaitPolicy(t, id, allows("192.0.2.1/32"))
}

// TestEtcdCompacted: a watch that asks for what was forgotten has everything read again.
func TestEtcdCompacted(t *testing.T) {
	m := startEtcd(t)
	m.put("acme.yaml", acme)
	before := verifyEvery
	verifyEvery = time.Hour // or it is what finds out
	t.Cleanup(func() { verifyEvery = before })
	s := serve(t, m.config())
	d := controlplanetest.Connect(t, s.dial(nil), controlplanetest.Config{ID: "host-1"})
	id := d.Subscribe("veth0", map[string]string{"tenant": "acme"})
	d.WaitPolicy(t, id, allows("192.0.2.1/32"))
	// Short enough that nobody notices but the watch, which takes up where it was.
	m.line.set(true)
	m.put("acme.yaml", acme2)
	last := m.put("acme.yaml", acme2)
	m.do(func(ctx context.Context) error { _, err := m.client.Compact(ctx, last); return err })
	m.line.set(false)
	d.WaitPolicy(t, id, allows("192.0.2.2/32"))
	eventually(t, "it tells", func() bool { return strings.Contains(s.log.String(), "etcd forgot what was to be read next") })
}

// TestEtcdMissing: as long as nothing was ever read, nothing is decided.
func TestEtcdMissing(t *testing.T) {
	s := serve(t, "policies: etcd://127.0.0.1:1/netfence/policies")
	d := controlplanetest.Connect(t, s.dial(nil), controlplanetest.Config{ID: "host-1"})
	d.Subscribe("veth0", nil)
	eventually(t, "the attachment waits", func() bool {
		listed := list[attachmentRecord](s, "/v1/attachments")
		return len(listed) == 1 && listed[0].Status == "undecided"
	})
	r := s.request("", "GET", "/readyz", "")
	if r.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(r.body), "etcd") {
		t.Errorf("readyz: %v", r)
	}
	if n := d.Commands()["subscribed_ack"]; n != 0 {
		t.Errorf("%d acks", n)
	}
}
