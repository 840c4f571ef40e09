// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netfence/netfence/internal/policyfile"
	"github.com/netfence/netfence/policy"
)

// checkRecord is what -o json prints.
type checkRecord struct {
	Files []fileRecord `json:"files"`
}

// fileRecord is one file's result.
type fileRecord struct {
	File     string         `json:"file"`
	Error    string         `json:"error,omitempty"`
	Mode     string         `json:"mode,omitempty"`
	Rules    int            `json:"rules"`
	Tests    int            `json:"tests,omitempty"`
	Warnings []string       `json:"warnings"`
	Explain  *explainRecord `json:"explain,omitempty"`
}

func (a *app) policyCheck() *cobra.Command {
	var explain, config string
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Validate policy files",
		Long: `Validate policy files, without a daemon. A sets.yaml beside a file is read with it, as in a policy folder; a folder
stands for the files in it.

--explain tells what each file would do with a packet: the verdict, and the rule that decides. For a name it tells which
domain rule decides the query, and whether the addresses of the answer are then open for the port. A file's match is not asked.

A file may hold tests, of the same form: tests: {allow: [pypi.org:443], deny: [169.254.169.254:80]}. One that fails makes the
file a broken one, here and in a policy folder. The guard is not asked.

The guard of a daemon's configuration is above every policy. It is known here only if --config names that file; NETFENCE_GUARD
counts with it.`,
		Example: `  netfenced policy check /etc/netfence/policies
  netfenced policy check agents.yaml --explain 10.0.9.7:443
  netfenced policy check agents.yaml --explain pypi.org:443
  netfenced policy check agents.yaml --explain 169.254.169.254:80 --config /etc/netfence/config.yaml
  netfenced policy check agents.yaml --explain '[2001:db8::1]:53/udp' -o json`,
	}
	cmd.Flags().StringVar(&explain, "explain", "", "`HOST:PORT[/tcp|/udp]` of a packet to judge, an address or a name (tcp unless said)")
	cmd.Flags().StringVar(&config, "config", "", "configuration `FILE` whose guard is above the policies (default none)")
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("policy check: name a file or a folder (see `netfenced policy check --help`)")
		}
		var asked *policy.Packet
		if explain != "" {
			q, err := policy.ParsePacket(explain)
			if err != nil {
				return usagef("policy check: --explain %v", err)
			}
			asked = &q
		}
		var guard *policy.Guard
		if config != "" {
			c, err := a.load(config)
			if err != nil {
				return err
			}
			guard = c.Guard
		}
		paths, err := policyFiles(args)
		if err != nil {
			return err
		}
		record := checkRecord{Files: []fileRecord{}}
		failed := 0
		for _, path := range paths {
			r := checkFile(path, asked, guard)
			if r.Error != "" {
				failed++
			}
			record.Files = append(record.Files, r)
		}
		if err := a.printCheck(record, *output); err != nil {
			return err
		}
		if failed > 0 {
			return errReported
		}
		return nil
	})
	return cmd
}

// policyFiles replaces folders by the policy files in them.
func policyFiles(args []string) ([]string, error) {
	var paths []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", arg, pathCause(err))
		}
		if !info.IsDir() {
			paths = append(paths, arg)
			continue
		}
		entries, err := os.ReadDir(arg)
		if err != nil {
			return nil, fmt.Errorf("policy folder %s: %w", arg, pathCause(err))
		}
		for _, entry := range entries {
			if ext := filepath.Ext(entry.Name()); ext == ".yaml" || ext == ".yml" {
				paths = append(paths, filepath.Join(arg, entry.Name()))
			}
		}
	}
	return paths, nil
}

func checkFile(path string, asked *policy.Packet, guard *policy.Guard) fileRecord {
	r := fileRecord{File: path, Warnings: []string{}}
	if err := r.check(asked, guard); err != nil {
		r.Error = err.Error()
	}
	return r
}

func (r *fileRecord) check(asked *policy.Packet, guard *policy.Guard) error {
	if slices.Contains(policyfile.SetsNames, filepath.Base(r.File)) {
		sets, err := policyfile.ReadSets(r.File)
		for _, set := range sets {
			r.Rules += len(set)
		}
		return err
	}
	file, err := policyfile.Read(r.File)
	if err != nil {
		return err
	}
	p := file.Policy
	if _, err := p.CompileWith(guard); err != nil {
		return fmt.Errorf("policy %s: with the guard above it: %w", r.File, err)
	}
	r.Mode = p.Mode.String()
	r.Rules = len(p.Allow) + len(p.Deny) + len(p.DNS.Allow) + len(p.DNS.Deny)
	r.Tests = file.Tests
	r.Warnings = append(r.Warnings, file.Warnings...)
	if asked != nil {
		r.Explain = explain(p, guard, *asked)
	}
	return nil
}

// printCheck writes results to stdout; what is wrong goes to stderr, a line each.
func (a *app) printCheck(record checkRecord, output format) error {
	if output == formatJSON {
		return printJSON(a.stdout, record)
	}
	var results, troubles strings.Builder
	for _, r := range record.Files {
		if r.Error != "" {
			fmt.Fprintln(&troubles, oneLine(r.Error))
			continue
		}
		kind := r.Mode
		if kind == "" {
			kind = "sets"
		}
		tests := ""
		if r.Tests > 0 {
			tests = fmt.Sprintf(", tests: %d", r.Tests)
		}
		fmt.Fprintf(&results, "%s: ok (%s, rules: %d%s)\n", r.File, kind, r.Rules, tests)
		if r.Explain != nil {
			fmt.Fprintf(&results, "%s: %s %s: %s\n", r.File, r.Explain.Packet, r.Explain.Verdict, r.Explain.Reason)
		}
		for _, warning := range r.Warnings {
			fmt.Fprintf(&troubles, "warning: %s: %s\n", r.File, warning)
		}
	}
	_, outErr := io.WriteString(a.stdout, results.String())
	_, errErr := io.WriteString(a.stderr, troubles.String())
	return errors.Join(outErr, errErr)
}

func pathCause(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}
