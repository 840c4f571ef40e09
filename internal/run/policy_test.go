// SPDX-License-Identifier: Apache-2.0

package run

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/netfence/netfence/internal/config"
)

// TestPolicyFileWithSets holds that run reads a file as attach and policy check do.
func TestPolicyFileWithSets(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"sets.yaml":   "sets: {npm: [192.0.2.0/24]}\n",
		"agents.yaml": "mode: allowlist\nallow: ['set:npm', 198.51.100.7]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := &Options{Config: config.Default(), PolicyFile: filepath.Join(dir, "agents.yaml")}
	p, warnings, err := o.policy()
	if err != nil || len(warnings) != 0 || len(p.Allow) != 2 || p.Allow[0].Prefix.String() != "192.0.2.0/24" {
		t.Errorf("policy %+v, warnings %q: %v", p, warnings, err)
	}
}
