// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"encoding/json"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// Result is what a command did.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Run runs a command to its end, whatever that is: Run(t, "attach", "--interface", "veth0").
func (d *Daemon) Run(t testenv.TB, args ...string) Result {
	t.Helper()
	return <-d.Go(t, args...)
}

// Go starts a command that takes until the test has done its part, and gives its result.
func (d *Daemon) Go(t testenv.TB, args ...string) <-chan Result {
	t.Helper()
	cmd := d.Command(args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	testenv.Start(t, cmd, d.NS, nil)
	result, ended := make(chan Result, 1), make(chan struct{})
	go func() {
		defer close(ended)
		if err := cmd.Wait(); cmd.ProcessState == nil {
			stderr.WriteString(err.Error())
			result <- Result{Stderr: stderr.String(), Code: -1}
			return
		}
		result <- Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // if the test gave up on it
		<-ended
	})
	return result
}

// Must is Run for a command that has to succeed. It returns what it printed, without the final newline.
func (d *Daemon) Must(t testenv.TB, args ...string) string {
	t.Helper()
	r := d.Run(t, args...)
	if r.Code != 0 {
		t.Fatalf("netfenced %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// Attach attaches and returns the id: Attach(t, "--interface", "veth0").
func (d *Daemon) Attach(t testenv.TB, args ...string) string {
	t.Helper()
	return d.Must(t, append([]string{"attach"}, args...)...)
}

// Attachment is an element of `netfenced list -o json`, and part of `netfenced policy show -o json`.
type Attachment struct {
	ID             string            `json:"id"`
	Target         string            `json:"target"`
	Type           string            `json:"type"`
	Direction      string            `json:"direction"`
	Mode           string            `json:"mode"`
	DNSMode        string            `json:"dns_mode"`
	Metadata       map[string]string `json:"metadata"`
	PacketsAllowed uint64            `json:"packets_allowed"`
	PacketsBlocked uint64            `json:"packets_blocked"`
	DNSAddress     string            `json:"dns_address"`
	DNSAllowed     uint64            `json:"dns_queries_allowed"`
	DNSBlocked     uint64            `json:"dns_queries_blocked"`
	Drops          map[string]uint64 `json:"drops"`
	WouldDeny      map[string]uint64 `json:"would_deny"`
	DNSWouldDeny   uint64            `json:"dns_queries_would_deny"`
}

// List is `netfenced list --all`.
func (d *Daemon) List(t testenv.TB) []Attachment {
	t.Helper()
	var list struct {
		Attachments []Attachment `json:"attachments"`
	}
	d.read(t, &list, "list", "--all")
	return list.Attachments
}

// Shown is what `netfenced policy show` prints.
type Shown struct {
	Attachment Attachment     `json:"attachment"`
	Policy     *policy.Policy `json:"policy"`
	Guard      *policy.Guard  `json:"guard"`
	Applied    struct {
		Revision string `json:"revision"`
	} `json:"applied"`
	Drops     map[string]uint64 `json:"drops"`
	Learned   []Learned         `json:"learned"`
	LastError string            `json:"last_error"`
	Pending   bool              `json:"pending"`
}

// Learned is an address that names have taught.
type Learned struct {
	Address string   `json:"address"`
	Names   []string `json:"names"`
}

// Show is `netfenced policy show`: what is in force.
func (d *Daemon) Show(t testenv.TB, id string) Shown {
	t.Helper()
	var shown Shown
	d.read(t, &shown, "policy", "show", id)
	return shown
}

// Status is what `netfenced status` prints.
type Status struct {
	Drops             map[string]uint64 `json:"drops"`
	WouldDeny         map[string]uint64 `json:"would_deny"`
	DaemonID          string            `json:"daemon_id"`
	ControlPlaneState string            `json:"control_plane_state"`
	AttachmentCount   int               `json:"attachment_count"`
	Problems          []string          `json:"problems"`
}

// Status is `netfenced status`.
func (d *Daemon) Status(t testenv.TB) Status {
	t.Helper()
	var s Status
	d.read(t, &s, "status")
	return s
}

func (d *Daemon) read(t testenv.TB, v any, args ...string) {
	t.Helper()
	text := d.Must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("netfenced %s: %v\n%s", strings.Join(args, " "), err, text)
	}
}

// Client calls the daemon's local API, for what the command line has no words for.
func (d *Daemon) Client(t testenv.TB) netfencev1.DaemonServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("socket: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return netfencev1.NewDaemonServiceClient(conn)
}
