// SPDX-License-Identifier: Apache-2.0

package imports

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/netfence/netfence/"
	api    = "api/netfence/v1"
)

// table is the import table of docs/architecture.md: data flows one way. Tests are free, as are commands, examples and
// what is only built for tests. A new package needs a row.
var table = map[string][]string{
	api:                             {},
	"internal/spelling":             {},
	"policy":                        {"internal/spelling"},
	"internal/target":               {},
	"internal/testenv":              {},
	"internal/testenv/authority":    {},
	"internal/pki":                  {},
	"internal/cached":               {"policy"},
	"internal/wire":                 {api, "policy"},
	"internal/policyfile":           {"policy", "internal/wire"},
	"controlplane":                  {api, "policy", "internal/wire"},
	"controlplane/controlplanetest": {api, "policy", "internal/wire", "controlplane"},
	"internal/state":                {"policy", "internal/target"},
	"internal/events":               {},
	"internal/datapath":             {"policy", "internal/target", "internal/events"},
	"internal/datagram":             {},
	"internal/dnsproxy":             {"policy", "internal/datagram", "internal/datapath", "internal/events"},
	"internal/intercept":            {"internal/datagram", "internal/datapath", "internal/dnsproxy"},
	"internal/metrics":              {"internal/datapath"},
	"internal/confine":              {},
	"internal/run":                  {api, "internal/confine", "policy", "internal/policyfile", "internal/wire", "internal/config", "internal/target", "internal/events", "internal/datapath", "internal/dnsproxy", "internal/intercept"},
	"internal/config":               {"policy", "internal/spelling"},
	"internal/reconciler":           {"policy", "internal/state", "internal/target"},
	"internal/localapi":             {api, "policy", "internal/wire", "internal/state", "internal/target", "internal/events"},
	"internal/controlclient":        {api, "policy", "internal/wire", "internal/state", "internal/target"},
	"internal/folder":               {"policy", "internal/policyfile", "internal/wire", "controlplane"},
	"internal/fleet":                {"policy", "controlplane", "internal/folder", "internal/pki"},
	"internal/cli":                  {api, "policy", "internal/policyfile", "internal/wire", "internal/config", "internal/run"},
}

// free may import all of ours: the daemon wires, the rest stands outside.
var free = []string{"internal/daemon", "internal/imports", "cmd/", "test/", "bench", "examples/", "demo"}

func TestTable(t *testing.T) {
	root := os.DirFS("../..")
	seen := map[string]bool{}
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// The tools are a module of their own.
		if entry.IsDir() && (name == "tools" || strings.HasPrefix(entry.Name(), ".") && name != ".") {
			return fs.SkipDir
		}
		if path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		dir := path.Dir(name)
		seen[dir] = true
		imports, err := importsOf(root, name)
		if err != nil {
			return err
		}
		allowed, listed := table[dir]
		if !listed {
			if !slices.ContainsFunc(free, func(prefix string) bool { return strings.HasPrefix(dir+"/", prefix) }) {
				t.Errorf("%s: package %s is not in the import table", name, dir)
			}
			return nil
		}
		for _, imported := range imports {
			if !slices.Contains(allowed, imported) {
				t.Errorf("%s: %s may not import %s", name, dir, imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !seen["policy"] || !seen[api] {
		t.Errorf("found only %v: is this the root of the module?", seen)
	}
}

// importsOf lists what a file imports of ours, below the module.
func importsOf(root fs.FS, name string) ([]string, error) {
	source, err := fs.ReadFile(root, name)
	if err != nil {
		return nil, err
	}
	file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var ours []string
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		if below, ok := strings.CutPrefix(imported, module); ok {
			ours = append(ours, below)
		}
	}
	return ours, nil
}
