// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

const (
	path     = "/v1/policies/agents.yaml"
	echoPort = 7
	pool     = 16 // addresses that the changes of one phase take turns with
)

// address is the n-th of those that policies may allow.
func address(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + n)}) }

func file(n int) string {
	return fmt.Sprintf("match: {tenant: acme}\nmode: allowlist\nallow: [%s]\n", address(n))
}

// change is one that was made.
type change struct {
	server             int
	revision, expected string
	body               string
}

// writer makes one change after the other, each on top of the last, through whichever server answers.
type writer struct {
	f       *fleet
	next    int // server
	tag     string
	made    []change
	unknown int // whose outcome was found by reading again
}

func (w *writer) request(s *server, method, body string, headers ...string) (code int, tag, text string, err error) {
	r, err := http.NewRequest(method, "http://"+s.api+path, strings.NewReader(body))
	if err != nil {
		return 0, "", "", err
	}
	r.Header.Set("Authorization", "Bearer "+s.admin)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answered, err := w.f.http.Do(r)
	if err != nil {
		return 0, "", "", err
	}
	defer answered.Body.Close()
	read, err := io.ReadAll(answered.Body)
	return answered.StatusCode, answered.Header.Get("ETag"), string(read), err
}

// put makes the change, whatever dies meanwhile. One whose outcome nobody told is looked up, and made again if it was not.
func (w *writer) put(body string) {
	w.f.t.Helper()
	var last string
	deadline := time.Now().Add(12 * testenv.Patience)
	for time.Now().Before(deadline) {
		i := w.next % len(w.f.servers)
		w.next++
		expected := []string{"If-Match", w.tag}
		if w.tag == "" {
			expected = []string{"If-None-Match", "*"}
		}
		code, tag, text, err := w.request(w.f.servers[i], "PUT", body, expected...)
		if err == nil && (code == http.StatusOK || code == http.StatusCreated) {
			w.made = append(w.made, change{i, tag, w.tag, body})
			w.tag = tag
			return
		}
		last = fmt.Sprintf("server %d: %d %s %v", i, code, text, err)
		if w.settle(body) {
			return
		}
	}
	w.f.t.Fatalf("a change could not be made: %s", last)
}

// settle reads what there is, from whichever server knows, and tells whether it is the change.
func (w *writer) settle(body string) bool {
	for i, s := range w.f.servers {
		code, tag, text, err := w.request(s, "GET", "")
		if err != nil || code != http.StatusOK && code != http.StatusNotFound {
			continue
		}
		changed := code == http.StatusOK && tag != w.tag
		if changed && text == body {
			w.made = append(w.made, change{-1, tag, w.tag, body})
			w.tag = tag
			w.unknown++
			return true
		}
		if changed {
			w.f.t.Fatalf("server %d has revision %s that nobody wrote, after %s: %s", i, tag, w.tag, text)
		}
		return false
	}
	return false
}

// node is a host with a daemon, and a workload that tries every address all the time.
type node struct {
	*testenv.World
	*harness.Daemon
	id      string
	arrived *testenv.Observer
}

func newNode(t *testing.T, f *fleet, i int) *node {
	t.Helper()
	n := &node{World: testenv.NewWorld(t, testenv.NewNS(t), testenv.VethDevice)}
	net := fmt.Sprintf("10.78.%d.", i)
	testenv.Veth(t, testenv.End{NS: n.Host, Name: "plane0", Addrs: []netip.Prefix{netip.MustParsePrefix(net + "2/24")}},
		testenv.End{NS: f.ns, Name: fmt.Sprintf("host%d", i), Addrs: []netip.Prefix{netip.MustParsePrefix(net + "1/24")}})
	testenv.EchoServer(t, n.Outside, echoPort)
	n.arrived = testenv.Observe(t, n.Outside, "eth0")
	n.Daemon = harness.New(t, n.Host, "NETFENCE_CONTROL_PLANE_URL="+net+"1:7444", "NETFENCE_CONTROL_PLANE_INSECURE=true")
	n.Start(t)
	testenv.Eventually(t, "the daemon is connected", func() bool { return n.Status(t).ControlPlaneState == "connected" })
	n.id = n.Attach(t, "--interface", n.Link, "--metadata", "tenant=acme")
	return n
}

// try sends a datagram to each of count addresses, again and again until the test ends.
func (n *node) try(t *testing.T, count int) {
	t.Helper()
	conns := make([]io.Writer, count)
	for i := range conns {
		conns[i] = n.Workload.Dial(t, "udp", netip.AddrPortFrom(address(i), echoPort).String())
	}
	done := make(chan struct{})
	var trying sync.WaitGroup
	t.Cleanup(func() { close(done); trying.Wait() })
	trying.Go(func() {
		every := time.NewTicker(25 * time.Millisecond)
		defer every.Stop()
		for {
			select {
			case <-every.C:
				for _, c := range conns {
					_, _ = c.Write([]byte("x")) // what a filter makes of it is seen outside
				}
			case <-done:
				return
			}
		}
	})
}

func (n *node) seen(t *testing.T, address netip.Addr) int {
	return n.arrived.Sum(t, testenv.To(address)).Count
}

// holds waits until the daemon has exactly the state, in the kernel, and its packets pass.
func (n *node) holds(t *testing.T, state int) {
	t.Helper()
	deadline := time.Now().Add(12 * testenv.Patience)
	for {
		shown := n.Show(t, n.id)
		if p := shown.Policy; p != nil && len(p.Allow) == 1 && p.Allow[0].Prefix.Addr() == address(state) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon has not got the state that allows %s: %+v %+v", address(state), shown, n.Status(t))
		}
		<-time.After(20 * time.Millisecond)
	}
	before := n.seen(t, address(state))
	testenv.Eventually(t, "packets of the last state pass", func() bool { return n.seen(t, address(state)) > before })
}

// cut drops what goes to the control plane and comes from it.
func (n *node) cut(t *testing.T) (heal func()) {
	t.Helper()
	nft := func(rules string) {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		testenv.Start(t, cmd, n.Host, nil)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("nft: %v", err)
		}
	}
	nft(`table inet cut {
		chain in { type filter hook input priority 0; iifname "plane0" drop; }
		chain out { type filter hook output priority 0; oifname "plane0" drop; }
	}`)
	return func() { nft("delete table inet cut") }
}

// TestChaos kills a server, a member of etcd and the leader, and cuts a daemon off, all while policies change.
func TestChaos(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	each, away := 30, 3*time.Second
	if os.Getenv("NETFENCE_SOAK") != "" {
		each, away = 2000, time.Minute
	}
	f := newFleet(t)
	w := &writer{f: f}
	w.put(file(0))
	nodes := []*node{newNode(t, f, 1), newNode(t, f, 2)}
	phases := []struct {
		what  string
		begin func() (end func())
	}{
		{"nothing dies", func() func() { return func() {} }},
		{"a server", func() func() { s := f.servers[0]; s.kill(); return func() { s.start(); f.ready(s) } }},
		{"a member", func() func() {
			m := f.members[(f.leader()+1)%3]
			m.kill()
			return m.start
		}},
		{"the leader", func() func() { m := f.members[f.leader()]; m.kill(); return m.start }},
		{"a daemon is cut off", func() func() {
			heal := nodes[1].cut(t)
			healed := time.After(away)
			return func() { <-healed; heal() }
		}},
	}
	for _, n := range nodes {
		n.try(t, len(phases)*pool)
		n.holds(t, 0)
	}
	last := 0
	for i, phase := range phases {
		// From here on, a packet may pass if the state that was acknowledged last allows it, or one that comes.
		forbidden := make([]map[netip.Addr]int, len(nodes))
		for k, n := range nodes {
			forbidden[k] = make(map[netip.Addr]int)
			for a := range len(phases) * pool {
				if a/pool != i && a != last {
					forbidden[k][address(a)] = n.seen(t, address(a))
				}
			}
		}
		end := func() {}
		for c := range each {
			switch c {
			case each / 3:
				end = phase.begin()
			case 2 * each / 3:
				end()
			}
			last = i*pool + c%pool
			w.put(file(last))
		}
		for k, n := range nodes {
			n.holds(t, last)
			for a, before := range forbidden[k] {
				if now := n.seen(t, a); now != before {
					t.Errorf("%s: %d packets to %s passed at node %d, which every state denies", phase.what, now-before, a, k)
				}
			}
		}
		t.Logf("%s: %d changes so far, %d of them looked up", phase.what, len(w.made), w.unknown)
	}
	if len(w.made) != 1+each*len(phases) {
		t.Errorf("%d changes made, want %d", len(w.made), 1+each*len(phases))
	}
	tag := strings.Trim(w.tag, `"`)
	testenv.Eventually(t, "every server has seen the last revision", func() bool {
		for _, s := range f.servers {
			log, err := os.ReadFile(s.audit)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(log), `"`+tag+`"`) {
				return false
			}
		}
		return true
	})
	f.checkAudit(w)
}

// checkAudit compares the audit logs with what the writer knows.
func (f *fleet) checkAudit(w *writer) {
	f.t.Helper()
	asked, done, seen := make([]int, 3), make([]map[string]string, 3), make([]string, 3)
	for i, s := range f.servers {
		done[i] = make(map[string]string)
		log, err := os.Open(s.audit)
		if err != nil {
			f.t.Fatal(err)
		}
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			var line struct {
				What, Policy, Who, Outcome string
				Old                        string `json:"old_revision"`
				New                        string `json:"new_revision"`
			}
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				f.t.Fatalf("%s: %v: %s", s.audit, err, lines.Bytes())
			}
			switch {
			case line.What == "seen":
				seen[i] = line.New
			case line.What == "put" && line.Outcome == "asked" && line.Who == "alice":
				asked[i]++
			case line.What == "put" && line.Outcome == "done" && line.Who == "alice":
				done[i][line.New] = line.Old
			}
		}
		if err := log.Close(); err != nil {
			f.t.Fatal(err)
		}
	}
	all := 0
	for _, c := range w.made {
		revision, expected := strings.Trim(c.revision, `"`), strings.Trim(c.expected, `"`)
		at := slices.IndexFunc(done, func(d map[string]string) bool { _, ok := d[revision]; return ok })
		if c.server < 0 { // nobody told the writer; the server may have died before it could record it
			if at >= 0 {
				all++
			}
			continue
		}
		all++
		if old, ok := done[c.server][revision]; !ok || old != expected {
			f.t.Errorf("server %d did not record that revision %s followed %s: %q", c.server, revision, expected, old)
		}
	}
	recorded := len(done[0]) + len(done[1]) + len(done[2])
	if recorded != all || asked[0]+asked[1]+asked[2] < len(w.made) {
		f.t.Errorf("%d changes were asked for and %d recorded as done, of %d that were made", asked[0]+asked[1]+asked[2], recorded, len(w.made))
	}
	for i := range seen {
		if last := strings.Trim(w.tag, `"`); seen[i] != last {
			f.t.Errorf("server %d saw revision %s last, want %s", i, seen[i], last)
		}
	}
}
