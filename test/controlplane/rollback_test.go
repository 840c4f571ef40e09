// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

const shortAck = "NETFENCE_CONTROL_PLANE_SUBSCRIBE_ACK_TIMEOUT=300ms"

// An attach that nobody acknowledges fails and leaves nothing: no pin, no record, no listener, no filter.
func TestAckTimeout(t *testing.T) {
	t.Parallel()
	w, workload := newWorld(t)
	d, p := start(t, w.Host, builtFromPublished, shortAck)
	before := traces(t, d)

	attached := d.Go(t, "attach", "--interface", w.Link)
	id := p.Subscribed().ID
	r := <-attached
	if r.Code != 1 || r.Stdout != "" || !strings.Contains(r.Stderr, "subscribe_ack_timeout") {
		t.Errorf("attach: %+v", r)
	}
	if got := p.Unsubscribed(); got.ID != id || got.Reason != reasonError || got.Error == "" {
		t.Errorf("got %+v, want ERROR", got)
	}
	if after := traces(t, d); !slices.Equal(after, before) {
		t.Errorf("left behind: %q, before there was %q", after, before)
	}
	if list := d.List(t); len(list) != 0 {
		t.Errorf("list: %+v", list)
	}
	passes(t, workload, "198.51.100.1")

	// Too late: the id is nobody's by now.
	p.Send(`{"id": %q, "subscribed_ack": {"mode": "POLICY_MODE_DISABLED"}}`, id)
	if got := p.Unsubscribed(); got.ID != id || got.Reason != reasonError {
		t.Errorf("got %+v, want ERROR", got)
	}
	// Nor does it come back with the next daemon.
	d.Kill(t)
	p.Ended()
	d.Env = slices.DeleteFunc(d.Env, func(s string) bool { return s == shortAck })
	d.Start(t)
	if sync := p.Connect(); len(sync.Attachments) != 0 {
		t.Errorf("SyncRequest has %v", sync.Attachments)
	}
	attach(t, d, p, `{"mode": "POLICY_MODE_BLOCK_ALL"}`, "--interface", w.Link)
}

// A refused acknowledgement fails the attach at once, however long the timeout.
func TestRefusedAck(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromPublished, longAck)
	cgroup := testenv.NewCgroup(t).Path
	before := traces(t, d)
	for _, ack := range []string{
		`{}`, // UNSPECIFIED is not "pass everything"
		`{"mode": "POLICY_MODE_ALLOWLIST", "allow_cidrs": [{"cidr": "nonsense"}]}`,
	} {
		attached := d.Go(t, "attach", "--cgroup", cgroup)
		id := p.Subscribed().ID
		p.Send(`{"id": %q, "subscribed_ack": %s}`, id, ack)
		if r := <-attached; r.Code != 1 || !strings.Contains(r.Stderr, "subscribed_ack.") {
			t.Errorf("attach with %s: %+v", ack, r)
		}
		if got := p.Unsubscribed(); got.ID != id || got.Reason != reasonError || !strings.Contains(got.Error, "subscribed_ack.") {
			t.Errorf("%s: got %+v, want ERROR and why", ack, got)
		}
		if after := traces(t, d); !slices.Equal(after, before) {
			t.Errorf("left behind: %q, before there was %q", after, before)
		}
	}
}

// traces are what attachments leave on the machine: pins of links, files of the daemon, sockets at which the
// daemon listens.
func traces(t *testing.T, d *harness.Daemon) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(d.BPFDir, "v3", "links", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{d.Dir, d.RunDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	sockets := 0
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		listeners := listeners(t, d.PID(), table)
		sockets += len(listeners)
		found = append(found, listeners...)
	}
	if sockets < 2 {
		t.Errorf("the daemon listens for nobody: %q", found)
	}
	return found
}

// listeners are the sockets of the process that others can send to (proc_pid_net(5)). Those of connections come and go,
// and its network namespace has other processes'.
func listeners(t *testing.T, pid int, table string) []string {
	t.Helper()
	own := sockets(t, pid)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
	if err != nil {
		t.Fatal(err)
	}
	const listen, unconnected, accepts = "0A", "07", "00010000"
	var found []string
	for line := range strings.Lines(string(text)) {
		switch fields := strings.Fields(line); {
		case table == "unix" && len(fields) > 7 && fields[3] == accepts && own[fields[6]]:
			found = append(found, table+" "+fields[7])
		case table != "unix" && (fields[3] == listen || fields[3] == unconnected) && own[fields[9]]:
			found = append(found, table+" "+fields[1])
		}
	}
	slices.Sort(found)
	return found
}

// sockets are the inodes of those that a process has open.
func sockets(t *testing.T, pid int) map[string]bool {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[string]bool{}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed since
		}
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return inodes
}
