// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
	"github.com/netfence/netfence/test/harness"
)

// alone is one netfence-control on loopback, at ports of its own choice, and the files that it was given.
type alone struct {
	program
	dir     string
	daemons string // address for daemons
	api     string
	admin   string // token
	puts    int
}

// newAlone starts a server. {dir} stands for the directory of its files; listen and api are given.
func newAlone(t *testing.T, dir, config string) *alone {
	t.Helper()
	binary := harness.Build(t, "netfence-control")
	s := &alone{dir: dir}
	s.admin = s.token(t, "admins", "alice")
	config = "listen: 127.0.0.1:0\napi: {listen: '127.0.0.1:0', tokens_file: '{dir}/admins'}\n" + config
	s.write(t, "control.yaml", strings.ReplaceAll(config, "{dir}", dir))
	s.program = program{t: t, command: []string{binary, "serve", "--config", filepath.Join(dir, "control.yaml")}}
	s.start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("netfence-control said:\n%s", s.said.String())
		}
	})
	var serves []string
	testenv.Eventually(t, "a server", func() bool {
		serves = regexp.MustCompile(`daemons=(\S+) api=(\S+)`).FindStringSubmatch(s.said.String())
		return serves != nil
	})
	s.daemons, s.api = serves[1], serves[2]
	return s
}

// token makes a token, whose hash goes into a file.
func (s *alone) token(t *testing.T, file, name string) string {
	t.Helper()
	made, err := exec.Command(harness.Build(t, "netfence-control"), "token", "--tokens-file", filepath.Join(s.dir, file), name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(made))
}

// write puts a file into place at once, and returns its path.
func (s *alone) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".draft", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".draft", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// says waits until the server has said something that it had not said before.
func (s *alone) says(t *testing.T, since int, text string) {
	t.Helper()
	testenv.Eventually(t, "the server says "+text, func() bool { return strings.Contains(s.said.String()[since:], text) })
}

// connects waits until a daemon is connected, for want "", or says why it is not.
func connects(t *testing.T, d *harness.Daemon, what, want string) {
	t.Helper()
	var last harness.Status
	defer func() {
		if t.Failed() {
			t.Logf("%s: status %+v", what, last)
		}
	}()
	testenv.Eventually(t, what, func() bool {
		last = d.Status(t)
		if want == "" {
			return last.ControlPlaneState == "connected"
		}
		return strings.Contains(strings.Join(last.Problems, "\n"), want)
	})
}

// permits waits until an attachment has the policy that allows an address alone.
func permits(t *testing.T, d *harness.Daemon, id, address string) {
	t.Helper()
	var last *policy.Policy
	testenv.Eventually(t, "a policy that allows "+address, func() bool {
		last = d.Show(t, id).Policy
		return len(last.Allow) == 1 && last.Allow[0].Prefix.String() == address
	})
}
