// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// value is what stands behind a key: a node of the file, or a variable's text as a scalar node.
type value struct {
	node    *yaml.Node
	fromEnv bool
}

const (
	maxPath       = 4095
	maxSocketPath = 107 // sun_path of unix(7), less its NUL
)

// text is the value as written. Quotes are YAML's business; "no" is text here, and not false.
func (v value) text() (string, error) {
	if v.node.Kind != yaml.ScalarNode {
		return "", errors.New("is not a single value")
	}
	return v.node.Value, nil
}

// list is a sequence of texts. A single text is a list too, and in it a comma separates, which is how a variable says it.
func (v value) list() ([]string, error) {
	switch v.node.Kind {
	case yaml.ScalarNode:
		var list []string
		for item := range strings.SplitSeq(v.node.Value, ",") {
			list = append(list, strings.TrimSpace(item))
		}
		return list, nil
	case yaml.SequenceNode:
		list := make([]string, len(v.node.Content))
		for i, item := range v.node.Content {
			text, err := value{node: resolve(item)}.text()
			if err != nil {
				return nil, fmt.Errorf("item %d %w", i+1, err)
			}
			list[i] = text
		}
		return list, nil
	default:
		return nil, errors.New("is neither a value nor a list")
	}
}

// structured is the value's YAML: the node itself, or what a variable's text parses to.
func (v value) structured() (*yaml.Node, error) {
	if !v.fromEnv {
		return v.node, nil
	}
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(v.node.Value), &document); err != nil {
		return nil, errors.New(yamlCause(err))
	}
	if len(document.Content) == 0 {
		return nil, errors.New("is empty")
	}
	return resolve(document.Content[0]), nil
}

// pairs is a mapping of texts; a single text is one too, k=v,k=v.
func (v value) pairs() (map[string]string, error) {
	if v.node.Kind == yaml.ScalarNode {
		return parsePairs(v.node.Value)
	}
	if v.node.Kind != yaml.MappingNode {
		return nil, errors.New("is not a mapping of names to values")
	}
	pairs := make(map[string]string)
	for i := 0; i < len(v.node.Content); i += 2 {
		name := v.node.Content[i].Value
		text, err := value{node: resolve(v.node.Content[i+1])}.text()
		if err != nil {
			return nil, fmt.Errorf("%s %w", name, err)
		}
		if _, ok := pairs[name]; ok {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		pairs[name] = text
	}
	return pairs, nil
}

// parsePairs reads k=v,k=v. A value may hold "=", and neither may hold a comma.
func parsePairs(s string) (map[string]string, error) {
	pairs := make(map[string]string)
	for pair := range strings.SplitSeq(s, ",") {
		name, text, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not name=value", pair)
		}
		if _, ok := pairs[name]; ok {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		pairs[name] = strings.TrimSpace(text)
	}
	return pairs, nil
}

func duration(field func(*Config) *time.Duration) func(*Config, value) error {
	return func(c *Config, v value) error {
		text, err := v.text()
		if err != nil {
			return err
		}
		d, err := parseDuration(text)
		if err != nil {
			return err
		}
		*field(c) = d
		return nil
	}
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		if _, err := strconv.Atoi(text); err == nil {
			return 0, fmt.Errorf("%q has no unit (write %ss)", text, text)
		}
		return 0, fmt.Errorf("%q is not a duration (write 30s, 5m or 1h)", text)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", text)
	}
	return d, nil
}

// life is a duration of something learned. None of them can be nothing, and none outlasts a month: what is learned is to end.
func life(field func(*Config) *time.Duration) func(*Config, value) error {
	return func(c *Config, v value) error {
		text, err := v.text()
		if err != nil {
			return err
		}
		d, err := parseLife(text)
		if err != nil {
			return err
		}
		*field(c) = d
		return nil
	}
}

const (
	minLife = time.Second
	maxLife = 30 * 24 * time.Hour
)

func parseLife(text string) (time.Duration, error) {
	d, err := parseDuration(text)
	if err == nil && (d < minLife || d > maxLife) {
		err = fmt.Errorf("%v is not between %v and %v", d, minLife, maxLife)
	}
	return d, err
}

func boolean(field func(*Config) *bool) func(*Config, value) error {
	return func(c *Config, v value) error {
		b, err := v.boolean()
		if err != nil {
			return err
		}
		*field(c) = b
		return nil
	}
}

func (v value) boolean() (bool, error) {
	text, err := v.text()
	if err != nil {
		return false, err
	}
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", text)
}

// maxCount keeps a limit within what the kernel's maps are sized for.
const maxCount = 1 << 20

func count(field func(*Config) *int) func(*Config, value) error {
	return func(c *Config, v value) error {
		text, err := v.text()
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxCount {
			return fmt.Errorf("%q is not a number between 1 and %d", text, maxCount)
		}
		*field(c) = n
		return nil
	}
}

func text(field func(*Config) *string) func(*Config, value) error {
	return func(c *Config, v value) (err error) {
		*field(c), err = v.text()
		return err
	}
}

func path(field func(*Config) *string, longest int) func(*Config, value) error {
	return func(c *Config, v value) error {
		text, err := v.text()
		if err != nil {
			return err
		}
		if !filepath.IsAbs(text) {
			return fmt.Errorf("%q is not an absolute path", text)
		}
		if len(text) > longest {
			return fmt.Errorf("path of %d bytes is longer than %d", len(text), longest)
		}
		*field(c) = filepath.Clean(text)
		return nil
	}
}
