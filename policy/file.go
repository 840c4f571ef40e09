// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxFile bounds a policy file. 100,000 rules take about 3 MiB.
	MaxFile = 8 << 20
	// maxFileRules bounds what a file becomes: a set of many rules may be
	// used many times.
	maxFileRules = 1 << 20
)

// File is a policy file.
type File struct {
	Name     string
	Match    map[string]string // metadata, all of which must match; empty: every attachment
	Priority int               // the highest matching file decides, ties by Name
	Policy   *Policy
	Sets     Sets // as defined in this file
	// Tests that the file holds, all of which its policy passes.
	Tests int
	// Warnings say what is allowed but hardly meant.
	Warnings []string
}

// Sets are named lists of rules in short form. "set:NAME" in a list of rules
// stands for them.
type Sets map[string][]string

// ParseFile reads a policy file that uses no sets but its own. Errors name the
// file, the line and the rule. name is only for them.
func ParseFile(name string, data []byte) (*File, error) { return Sets(nil).ParseFile(name, data) }

// ParseFile reads a policy file that may use these sets too. A set that the
// file itself defines goes before one of the same name.
func (s Sets) ParseFile(name string, data []byte) (*File, error) {
	root, err := parseYAML(data)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %v", name, err)
	}
	d := decoder{shared: s}
	f := &File{Name: name, Policy: &Policy{}}
	if err := d.file(root, f); err != nil {
		return nil, fmt.Errorf("policy %s: %v", name, err)
	}
	f.Warnings = d.warnings
	return f, nil
}

// ParseSets reads a sets.yaml file: only a "sets" key, and "version".
func ParseSets(name string, data []byte) (Sets, error) {
	root, err := parseYAML(data)
	if err != nil {
		return nil, fmt.Errorf("sets %s: %v", name, err)
	}
	var d decoder
	if err := d.setsFile(root); err != nil {
		return nil, fmt.Errorf("sets %s: %v", name, err)
	}
	return d.sets, nil
}

// UnmarshalYAML reads a policy inside another file: the keys of a policy file
// without those that choose a file (match, priority, version).
func (p *Policy) UnmarshalYAML(n *yaml.Node) error {
	var d decoder
	var read Policy
	if err := d.policy(n, &read, d.policyKeys(&read)); err != nil {
		return err
	}
	*p = read
	return nil
}

// Matches reports whether the file is for an attachment with this metadata.
func (f *File) Matches(metadata map[string]string) bool {
	for key, want := range f.Match {
		if got, ok := metadata[key]; !ok || got != want {
			return false
		}
	}
	return true
}

// parseYAML returns the one document in data. Aliases stay nodes: nothing is
// expanded here, and the schema has no place where they multiply.
func parseYAML(data []byte) (*yaml.Node, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%d bytes, at most %d", len(data), MaxFile)
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the file is empty")
	case err != nil:
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	switch err := d.Decode(&more); {
	case err == nil:
		return nil, fmt.Errorf("line %d: a second document (one file, one policy)", more.Line)
	case !errors.Is(err, io.EOF):
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return doc.Content[0], nil
}
