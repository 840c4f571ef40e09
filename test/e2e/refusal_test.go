// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// everything is what a refused request must leave as it was.
type everything struct {
	standing
	BPF   []string // every path below bpf_dir
	State [sha256.Size]byte
}

func (s *scene) everything(t *testing.T) everything {
	t.Helper()
	return everything{s.standing(t), s.bpf(t), s.state(t)}
}

func (s *scene) bpf(t *testing.T) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(s.BPFDir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func (s *scene) stateFile() string { return filepath.Join(s.RunDir, "state.db") }

func (s *scene) state(t *testing.T) [sha256.Size]byte {
	t.Helper()
	data, err := os.ReadFile(s.stateFile())
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

// unchanged calls f and shows that nothing is different afterwards.
func (s *scene) unchanged(t *testing.T, f func()) {
	t.Helper()
	before := s.everything(t)
	f()
	if after := s.everything(t); !reflect.DeepEqual(before, after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
}

// fails checks that a command was refused, in one line that says this.
func fails(t *testing.T, r harness.Result, code int, want ...string) {
	t.Helper()
	if r.Code != code || r.Stdout != "" || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("exit code %d, want %d and one line on stderr: %+v", r.Code, code, r)
	}
	for _, w := range want {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("%q, want %q in it", r.Stderr, w)
		}
	}
}

// TestRefusedAttach says why and changes nothing.
func TestRefusedAttach(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	v1, ok := testenv.CgroupV1Mount()
	if !ok {
		t.Fatal("no cgroup v1 hierarchy is mounted (mkdir /tmp/v1 && mount -t cgroup -o none,name=test none /tmp/v1)")
	}
	cg := testenv.NewCgroup(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Policy(t, "table.yaml", tablePolicy)
	s.Start(t)
	id := s.Attach(t, "--interface", s.Link, "--key", "job-7")

	for name, test := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"missing interface": {[]string{"--interface", "veth99"}, 1, []string{"interface veth99: no such interface"}},
		"no interface name": {[]string{"--interface", "a/b"}, 1, []string{"not an interface name"}},
		"loopback":          {[]string{"--interface", "lo"}, 1, []string{"lo", "cgroup"}},
		"direction unclear": {[]string{"--interface", uplink}, 1, []string{"a default route leaves by it", "--direction"}},
		"unknown direction": {[]string{"--interface", uplink, "--direction", "out"}, 2, []string{"ingress, egress"}},
		"other namespace":   {[]string{"--interface", "eth0", "--netns", s.Workload.Path()}, 1, []string{"attach its host-side end " + s.Link}},
		"missing cgroup":    {[]string{"--cgroup", cg.Path + "/missing"}, 1, []string{"no such cgroup"}},
		"cgroup v1":         {[]string{"--cgroup", v1}, 1, []string{"cgroup v1", filepath.Dir(cg.Path)}},
		"root cgroup":       {[]string{"--cgroup", filepath.Dir(cg.Path)}, 1, []string{"root cgroup"}},
		"not a cgroup":      {[]string{"--cgroup", s.Dir}, 1, []string{"not a cgroup"}},
		"file":              {[]string{"--cgroup", file}, 1, []string{file}},
		"missing process":   {[]string{"--pid", "2147483647"}, 1, []string{"no such process"}},
		"second attach":     {[]string{"--interface", s.Link}, 1, []string{"taken by attachment " + id, "job-7"}},
		"other key":         {[]string{"--interface", s.Link, "--key", "job-8"}, 1, []string{"taken by attachment " + id}},
		"key of another":    {[]string{"--cgroup", cg.Path, "--key", "job-7"}, 1, []string{"key job-7 is in use by attachment " + id}},
		"no target":         {nil, 2, []string{"name one target"}},
		"two targets":       {[]string{"--interface", s.Link, "--cgroup", cg.Path}, 2, []string{"name one target"}},
	} {
		t.Run(name, func(t *testing.T) {
			s.unchanged(t, func() { fails(t, s.Run(t, append([]string{"attach"}, test.args...)...), test.code, test.want...) })
		})
	}
	t.Run("not a user's", func(t *testing.T) {
		s.unchanged(t, func() {
			fails(t, s.asNobody(t, "attach", "--cgroup", cg.Path), 1, "socket "+s.Socket, "permission denied", "sudo")
		})
	})
	s.check(t, s.Inside, table, silent)
}

// asNobody runs a command without any privilege. The program and its directories are root's, so it is run by an open
// file, and what it needs to know is in its environment.
func (s *scene) asNobody(t *testing.T, args ...string) harness.Result {
	t.Helper()
	program, err := os.Open(s.Binary)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	cmd := s.Command(args...)
	cmd.Path = "/proc/self/fd/3"
	cmd.ExtraFiles = []*os.File{program}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	testenv.Start(t, cmd, s.Host, nil)
	if err := cmd.Wait(); cmd.ProcessState == nil {
		t.Fatalf("netfenced %v: %v", args, err)
	}
	return harness.Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
}

// TestRefusedCommand of a control plane changes nothing, and its answer says what was wrong with which field.
func TestRefusedCommand(t *testing.T) {
	s := newScene(t, testenv.VethDevice)
	p := s.newPlane(t, netip.MustParseAddrPort("192.0.2.2:9000"))
	s.Start(t)
	p.Synced(t)
	id := s.attachBy(t, p, "--interface", s.Link)
	allow := []string{"198.51.100.0/25", "203.0.113.0/24", "2001:db8:100::/48"}
	if r := p.Command(t, replace(id, allowlist, allow...)); r.GetCode() != netfencev1.CommandCode_COMMAND_CODE_APPLIED {
		t.Fatalf("command: %v", r)
	}

	mode := func(m netfencev1.PolicyMode) *netfencev1.ControlCommand {
		return &netfencev1.ControlCommand{Id: id, Command: &netfencev1.ControlCommand_SetMode{SetMode: &netfencev1.SetMode{Mode: m}}}
	}
	for name, test := range map[string]struct {
		command *netfencev1.ControlCommand
		field   string
		value   string
	}{
		"bad CIDR in the middle": {replace(id, allowlist, "0.0.0.0/0", "10.0.0.0/33", "::/0"), "bulk_update.allow_cidrs[1].cidr", "10.0.0.0/33"},
		"name for a CIDR":        {replace(id, allowlist, "0.0.0.0/0", "pypi.org"), "bulk_update.allow_cidrs[1].cidr", "pypi.org"},
		"mode unset":             {replace(id, netfencev1.PolicyMode_POLICY_MODE_UNSPECIFIED, "0.0.0.0/0"), "bulk_update.mode", ""},
		"unknown mode":           {mode(99), "set_mode.mode", "99"},
		"unset mode":             {mode(0), "set_mode.mode", ""},
		"bad increment": {&netfencev1.ControlCommand{Id: id, Command: &netfencev1.ControlCommand_AllowCidr{
			AllowCidr: &netfencev1.CIDREntry{Cidr: "203.0.113"},
		}}, "allow_cidr.cidr", "203.0.113"},
	} {
		t.Run(name, func(t *testing.T) {
			s.unchanged(t, func() {
				r := p.Command(t, test.command)
				if r.GetCode() != netfencev1.CommandCode_COMMAND_CODE_REFUSED || len(r.GetViolations()) != 1 ||
					r.GetViolations()[0].GetField() != test.field || !strings.Contains(r.GetViolations()[0].GetValue(), test.value) {
					t.Errorf("result %v, want %s refused", r, test.field)
				}
			})
			if shown := s.Show(t, id); !strings.Contains(shown.LastError, test.field) {
				t.Errorf("last error %q, want %s in it", shown.LastError, test.field)
			}
			if problems := s.Status(t).Problems; len(problems) != 1 || !strings.Contains(problems[0], test.field) {
				t.Errorf("problems %v, want %s among them", problems, test.field)
			}
			s.check(t, s.Inside, []row{
				{"allowed", "203.0.113.9:7", every, false, true},
				{"not allowed", "198.51.100.200:7", every, false, false},
			}, silent)
		})
	}
	// The next good one is taken, and what was wrong is forgotten.
	if r := p.Command(t, replace(id, allowlist, allow...)); r.GetCode() != netfencev1.CommandCode_COMMAND_CODE_APPLIED {
		t.Errorf("command: %v", r)
	}
	if problems := s.Status(t).Problems; len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
}
