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

	"github.com/netfence/netfence/internal/wire"
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
	Warnings []string       `json:"warnings"`
	Explain  *explainRecord `json:"explain,omitempty"`
}

func (a *app) policyCheck() *cobra.Command {
	var explain string
	cmd := &cobra.Command{
		Use:   "check FILE...",
		Short: "Validate policy files",
		Long: `Validate policy files, without a daemon. A sets.yaml beside a file is read with it, as in a policy folder; a folder
stands for the files in it.

--explain tells what each file would do with a packet: the verdict, and the rule that decides. A file's match is not asked.`,
		Example: `  netfenced policy check /etc/netfence/policies
  netfenced policy check agents.yaml --explain 10.0.9.7:443
  netfenced policy check agents.yaml --explain '[2001:db8::1]:53/udp' -o json`,
		Args: cobra.MinimumNArgs(1),
	}
	cmd.Flags().StringVar(&explain, "explain", "", "`ADDRESS:PORT[/tcp|/udp]` of a packet to judge (tcp unless said)")
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(_ *cobra.Command, args []string) error {
		var flow *policy.Flow
		if explain != "" {
			f, err := parseFlow(explain)
			if err != nil {
				return usagef("policy check: --explain %v", err)
			}
			flow = &f
		}
		paths, err := policyFiles(args)
		if err != nil {
			return err
		}
		record := checkRecord{Files: []fileRecord{}}
		failed := 0
		for _, path := range paths {
			r := checkFile(path, flow)
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

// setsNames are the files whose sets the others of a folder may use.
var setsNames = []string{"sets.yaml", "sets.yml"}

func checkFile(path string, flow *policy.Flow) fileRecord {
	r := fileRecord{File: path, Warnings: []string{}}
	if err := r.check(flow); err != nil {
		r.Error = err.Error()
	}
	return r
}

func (r *fileRecord) check(flow *policy.Flow) error {
	data, err := os.ReadFile(r.File)
	if err != nil {
		return fmt.Errorf("policy %s: %w", r.File, pathCause(err))
	}
	if slices.Contains(setsNames, filepath.Base(r.File)) {
		sets, err := policy.ParseSets(r.File, data)
		for _, set := range sets {
			r.Rules += len(set)
		}
		return err
	}
	sets, err := setsBeside(r.File)
	if err != nil {
		return err
	}
	file, err := sets.ParseFile(r.File, data)
	if err != nil {
		return err
	}
	p := file.Policy
	if err := usable(p); err != nil {
		return fmt.Errorf("policy %s: %w", r.File, err)
	}
	r.Mode = p.Mode.String()
	r.Rules = len(p.Allow) + len(p.Deny) + len(p.DNS.Allow) + len(p.DNS.Deny)
	r.Warnings = append(r.Warnings, file.Warnings...)
	if flow != nil {
		r.Explain = explainFlow(p, *flow)
	}
	return nil
}

// usable judges what the daemon would judge before it sends the policy to itself.
func usable(p *policy.Policy) error {
	if err := p.Validate(policy.Limits{}); err != nil {
		return err
	}
	if _, err := p.Compile(); err != nil {
		return err
	}
	_, err := wire.BulkUpdate(p, wire.Self())
	var unsupported *wire.UnsupportedError
	if errors.As(err, &unsupported) {
		return fmt.Errorf("%s: not supported yet (leave it out)", unsupported.Field)
	}
	return err
}

// setsBeside reads the sets that a file shares with its folder.
func setsBeside(path string) (policy.Sets, error) {
	all := policy.Sets{}
	for _, name := range setsNames {
		beside := filepath.Join(filepath.Dir(path), name)
		data, err := os.ReadFile(beside)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sets %s: %w", beside, pathCause(err))
		}
		sets, err := policy.ParseSets(beside, data)
		if err != nil {
			return nil, err
		}
		for name, rules := range sets {
			if _, ok := all[name]; ok {
				return nil, fmt.Errorf("sets %s: %s is in %s too", beside, name, setsNames[0])
			}
			all[name] = rules
		}
	}
	return all, nil
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
		fmt.Fprintf(&results, "%s: ok (%s, rules: %d)\n", r.File, kind, r.Rules)
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
