// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/netfence/netfence/internal/spelling"
	"github.com/netfence/netfence/policy"
)

// maxFileBytes bounds what is parsed: a configuration is a page, not a data set.
const maxFileBytes = 1 << 20

// Load reads the file at path, then environ ("KEY=value" pairs, as os.Environ gives), over the defaults.
// An empty path means DefaultPath, which need not exist; a named file must. The error names the file and line, or the
// variable, and the key.
func Load(path string, environ []string) (*Config, error) {
	named := path != ""
	if !named {
		path = DefaultPath
	}
	c := Default()
	data, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
	case err != nil:
		return nil, fmt.Errorf("config %s: %w", path, err)
	default:
		if err := c.readFile(data); err != nil {
			return nil, fmt.Errorf("config %s: %w", path, err)
		}
	}
	if err := c.readEnvironment(environ); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("config %s: %w", path, err)
	}
	return c, nil
}

// Socket finds the daemon's socket for a client: NETFENCE_SOCKET, else the socket key of the file at DefaultPath, else
// DefaultSocket. Nothing else of the file is judged: a running daemon must stay reachable while its file is edited.
func Socket(environ []string) (string, error) {
	return socket(DefaultPath, environ)
}

func socket(path string, environ []string) (string, error) {
	for _, pair := range environ {
		if value, ok := strings.CutPrefix(pair, "NETFENCE_SOCKET="); ok && value != "" {
			return value, nil
		}
	}
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return DefaultSocket, nil
	}
	if err != nil {
		return "", fmt.Errorf("config %s: %w (name the daemon's socket with --socket)", path, err)
	}
	var file struct {
		Socket string `yaml:"socket"`
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		return "", fmt.Errorf("config %s: %s (name the daemon's socket with --socket)", path, yamlCause(err))
	}
	if file.Socket == "" {
		return DefaultSocket, nil
	}
	return file.Socket, nil
}

// read returns at most maxFileBytes. Its errors leave the path to the caller, who names it anyway.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, cause(err)
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxFileBytes)
	}
	return data, nil
}

func cause(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

func yamlCause(err error) string {
	return strings.TrimPrefix(err.Error(), "yaml: ")
}

func (c *Config) readFile(data []byte) error {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // empty, or comments only
		}
		return errors.New(yamlCause(err))
	}
	if err := decoder.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return errors.New("more than one YAML document")
	}
	return c.readMapping("", document.Content[0])
}

// readMapping applies the keys below section ("" at the top).
func (c *Config) readMapping(section string, node *yaml.Node) error {
	node = resolve(node)
	if isNull(node) {
		return nil
	}
	if node.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: %s is not a mapping", node.Line, orFile(section))
	}
	seen := make(map[string]bool)
	for i := 0; i < len(node.Content); i += 2 {
		at, content := node.Content[i], resolve(node.Content[i+1])
		name := at.Value
		if section != "" {
			name = section + "." + name
		}
		if seen[name] {
			return fmt.Errorf("line %d: %s is there twice", at.Line, name)
		}
		seen[name] = true
		k, known := keyByName(name)
		switch {
		case known && isNull(content):
		case known:
			if err := k.apply(c, value{node: content}); err != nil {
				return fmt.Errorf("line %d: %s: %w", at.Line, name, err)
			}
		case isSection(name):
			if err := c.readMapping(name, content); err != nil {
				return err
			}
		default:
			return fmt.Errorf("line %d: unknown key %s%s", at.Line, name, didYouMean(name, keyNames()))
		}
	}
	return nil
}

// readEnvironment applies the variables in the order of the keys, whatever order environ is in. An empty variable is
// an unset one. An unknown one is a warning and not an error: Kubernetes sets NETFENCE_PORT and the like in every pod
// that shares a namespace with a service of that name.
func (c *Config) readEnvironment(environ []string) error {
	set := make(map[string]string)
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, envPrefix) && text != "" {
			set[name] = text
		}
	}
	var known []string
	for _, k := range keys {
		known = append(known, k.env())
		text, ok := set[k.env()]
		delete(set, k.env())
		if !ok {
			continue
		}
		if err := k.apply(c, value{node: scalar(text), fromEnv: true}); err != nil {
			return fmt.Errorf("environment %s: %w", k.env(), err)
		}
	}
	unknown := make([]string, 0, len(set))
	for name := range set {
		unknown = append(unknown, name)
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		switch {
		case strings.HasPrefix(name, "NETFENCE_CONTROL_PLANE_TLS_"): // what it was to protect is not
			return fmt.Errorf("environment %s: unknown%s", name, didYouMean(name, known))
		case strings.HasPrefix(name, "NETFENCE_GUARD_"):
			return fmt.Errorf("environment %s: unknown (one variable has it all, NETFENCE_GUARD='{deny: [169.254.0.0/16]}')", name)
		}
		c.Warnings = append(c.Warnings, "environment: unknown "+name+didYouMean(name, known))
	}
	return nil
}

// check judges the keys together.
func (c *Config) check() error {
	if err := c.ControlPlane.check(); err != nil {
		return fmt.Errorf("control_plane%w", err)
	}
	if c.DNS.MinTTL > c.DNS.MaxTTL {
		return fmt.Errorf("dns.min_ttl: %v is more than dns.max_ttl, %v", c.DNS.MinTTL, c.DNS.MaxTTL)
	}
	if err := c.DefaultPolicy.Validate(policy.Limits{Rules: c.Limits.Rules}); err != nil {
		return fmt.Errorf("default_policy: %w", err)
	}
	if err := checkMetadata(c.Metadata, c.Limits.MetadataBytes); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	return nil
}

func resolve(node *yaml.Node) *yaml.Node {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

func isNull(node *yaml.Node) bool { return node.Kind == yaml.ScalarNode && node.Tag == "!!null" }

func orFile(section string) string {
	if section == "" {
		return "the file"
	}
	return section
}

func didYouMean(got string, known []string) string {
	if name := spelling.Nearest(got, known); name != "" {
		return " (did you mean " + name + "?)"
	}
	return ""
}
