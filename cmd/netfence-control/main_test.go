// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/fleet"
)

func TestCommands(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("listen: 0.0.0.0:7443\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args         string
		code         int
		stdout, errs string // part of
	}{
		{"", exitDone, "netfence-control serve --config", ""},
		{"serve --help", exitDone, "policies: dir:///etc/netfence/policies", ""},
		{"token --help", exitDone, "--read prometheus", ""},
		{"version", exitDone, "netfence-control ", ""},
		{"completion bash", exitDone, "__start_netfence-control", ""},
		{"srve", exitUsage, "", `unknown command "srve"`},
		{"serve --confg x", exitUsage, "", "(see `netfence-control serve --help`)"},
		{"token", exitUsage, "", "(see `netfence-control token --help`)"},
		{"token alice", exitUsage, "", "tokens-file"},
		{"token --tokens-file " + dir + "/no/such/folder alice", exitFailed, "", "no such file or directory"},
		{"serve --config " + dir + "/none.yaml", exitFailed, "", "none.yaml: no such file"},
		{"serve --config " + bad, exitFailed, "", "give tls.cert_file"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(tt.args), &stdout, &stderr)
		if code != tt.code || !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.errs) {
			t.Errorf("%q: exit code %d, want %d\n%s%s", tt.args, code, tt.code, stdout.String(), stderr.String())
		}
		if lines := strings.Count(stderr.String(), "\n"); lines > 1 || (lines == 1) != (code != exitDone) {
			t.Errorf("%q: not one line on stderr:\n%s", tt.args, stderr.String())
		}
	}
}

// TestToken: only the hash is kept, and another token of the same name beside it.
func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	var made []string
	for range 2 {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), []string{"token", "--tokens-file", file, "--read", "alice"}, &stdout, &stderr); code != exitDone {
			t.Fatal(stderr.String())
		}
		made = append(made, strings.TrimSpace(stdout.String()))
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(data), "alice sha256:") != 2 || made[0] == made[1] || len(made[0]) < 52 ||
		strings.Contains(string(data), made[0]) {
		t.Errorf("made %v, and the file is\n%s", made, data)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", info.Mode(), err)
	}
}

// TestExample: the configuration that the documents show is one.
func TestExample(t *testing.T) {
	if _, err := fleet.Load("../../examples/fleet/control.yaml"); err != nil {
		t.Error(err)
	}
}
