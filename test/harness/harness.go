// SPDX-License-Identifier: Apache-2.0

// Package harness runs the real netfenced, as its users do, for the tests of the whole and for the demo: a process with
// directories of its own, its command line, its socket.
//
// A package of tests begins with
//
//	func TestMain(m *testing.M) { harness.Main(m) }
//
// which is testenv.Main, and in the end removes the program that the tests built.
package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/netfence/netfence/internal/testenv"
)

// Main is testenv.Main for a package that starts netfenced.
func Main(r testenv.Runner) { testenv.Main(suite{r}) }

// Daemon is one netfenced with its own configuration, socket, state and pins, so that several may run side by side. It
// is made by New and runs from Start to Stop or Kill, as often as a test likes.
type Daemon struct {
	Binary string
	NS     *testenv.NS // where it runs; nil: the suite's own

	Dir      string // holds all of the following but BPFDir
	Config   string // file for --config
	Socket   string
	RunDir   string // state and lock
	Policies string // the policy folder, empty
	BPFDir   string // on a bpffs of its own

	// Env is added to the environment of every command: NETFENCE_CONTROL_PLANE_URL=127.0.0.1:9000.
	Env []string
	// Under is a command that starts the daemon, such as setpriv with its flags; nil: none.
	Under []string

	log     log
	process *process
}

// New prepares a daemon in the network namespace ns. Its control plane is the policy folder unless env says otherwise.
func New(t testenv.TB, ns *testenv.NS, env ...string) *Daemon {
	t.Helper()
	dir := t.TempDir()
	d := &Daemon{
		Binary:   binary(t),
		NS:       ns,
		Dir:      dir,
		Config:   filepath.Join(dir, "config.yaml"),
		Socket:   filepath.Join(dir, "d.sock"),
		RunDir:   filepath.Join(dir, "run"),
		Policies: filepath.Join(dir, "policies"),
		BPFDir:   filepath.Join(testenv.BPFFS(t), "netfence"),
		Env:      env,
	}
	if err := os.Mkdir(d.Policies, 0o700); err != nil {
		t.Fatalf("policies: %v", err)
	}
	config := fmt.Sprintf("socket: %s\ndata_dir: %s\nrun_dir: %s\nbpf_dir: %s\ncontrol_plane:\n  url: dir://%s\n",
		d.Socket, filepath.Join(dir, "data"), d.RunDir, d.BPFDir, d.Policies)
	if err := os.WriteFile(d.Config, []byte(config), 0o600); err != nil {
		t.Fatalf("config: %v", err)
	}
	t.Cleanup(func() { d.report(t) })
	return d
}

// report shows the log of a failed test, and fails a test whose daemon raced or panicked, even if nobody looked.
func (d *Daemon) report(t testenv.TB) {
	text := d.Log()
	for _, broken := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
		if strings.Contains(text, broken) {
			t.Errorf("netfenced: %s", broken)
		}
	}
	if test, ok := t.(interface{ Failed() bool }); ok && test.Failed() {
		t.Logf("netfenced said:\n%s", text)
	}
}

// Log is what the daemon has said so far, over all its starts.
func (d *Daemon) Log() string { return d.log.String() }

// Policy puts a file into the policy folder, whole, as an editor or a deployment does.
func (d *Daemon) Policy(t testenv.TB, name, text string) {
	t.Helper()
	// Not *.yaml, so the folder does not read it before it is complete.
	draft := filepath.Join(d.Policies, "."+name+".draft")
	if err := os.WriteFile(draft, []byte(text), 0o600); err != nil {
		t.Fatalf("policy: %v", err)
	}
	if err := os.Rename(draft, filepath.Join(d.Policies, name)); err != nil {
		t.Fatalf("policy: %v", err)
	}
}

// Command is a netfenced command that talks to this daemon, or is it.
func (d *Daemon) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(d.Binary, args...)
	for _, pair := range os.Environ() {
		// Not the caller's own settings, nor testenv's; but how interfaces are held is the machine's.
		if !strings.HasPrefix(pair, "NETFENCE_") || strings.HasPrefix(pair, "NETFENCE_INTERFACE_HOOK=") {
			cmd.Env = append(cmd.Env, pair)
		}
	}
	// With the race detector a program waits a second before it exits, unless told otherwise.
	cmd.Env = append(append(cmd.Env, "GORACE=atexit_sleep_ms=0", "NETFENCE_SOCKET="+d.Socket), d.Env...)
	return cmd
}
