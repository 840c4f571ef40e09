// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/netfence/netfence/internal/spelling"
)

// key is a known key of a mapping and how its value is read.
type key struct {
	name string
	read func(*yaml.Node) error
}

// lineError is an error with its line; the innermost line stands.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }

// at makes an error about a node. The line of an error among args is nearer
// than the node's; it moves to the front.
func at(n *yaml.Node, format string, args ...any) error {
	line := n.Line
	for i, arg := range args {
		if inner, ok := arg.(*lineError); ok {
			line, args[i] = inner.line, inner.err
		}
	}
	return &lineError{line, fmt.Errorf(format, args...)}
}

// resolve follows an alias. An alias of an alias is not YAML.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// scalar returns what is written, whatever YAML takes it for: 443, 10.0 and no
// are texts of ours.
func scalar(n *yaml.Node) (string, error) {
	n = resolve(n)
	if n.Kind != yaml.ScalarNode || isNull(n) {
		return "", fmt.Errorf("expected a single value, found %s", kindName(n))
	}
	return n.Value, nil
}

func kindName(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "nothing"
	}
	return quote(n.Value)
}

// pairs walks a mapping and refuses a key that comes twice. Nothing at all is
// an empty one. Errors begin with where.
func pairs(n *yaml.Node, where string, visit func(name string, key, value *yaml.Node) error) error {
	n = resolve(n)
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return at(n, "%sexpected a mapping, found %s", where, kindName(n))
	}
	seen := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		name, err := scalar(k)
		if err != nil {
			return at(k, "%skey: %v", where, err)
		}
		if seen[name] {
			return at(k, "%skey %s comes twice", where, quote(name))
		}
		seen[name] = true
		if err := visit(name, k, v); err != nil {
			return at(v, "%v", err)
		}
	}
	return nil
}

// mapping reads a mapping of known keys.
func mapping(n *yaml.Node, where string, keys []key) error {
	return pairs(n, where, func(name string, k, v *yaml.Node) error {
		names := make([]string, len(keys))
		for i := range keys {
			if keys[i].name == name {
				return keys[i].read(v)
			}
			names[i] = keys[i].name
		}
		hint := didYouMean(name, names)
		if hint == "" {
			hint = " (one of " + strings.Join(names, ", ") + ")"
		}
		return at(k, "%sunknown key %s%s", where, quote(name), hint)
	})
}

// lookup finds the value of a key, or nil.
func lookup(n *yaml.Node, name string) *yaml.Node {
	if n == nil {
		return nil
	}
	if n = resolve(n); n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if k := resolve(n.Content[i]); k.Kind == yaml.ScalarNode && k.Value == name {
				return n.Content[i+1]
			}
		}
	}
	return nil
}

// sequence walks a list. Nothing at all is an empty one: what is left of a
// list when its entries are commented out.
func sequence(n *yaml.Node, what string, visit func(i int, item *yaml.Node) error) error {
	n = resolve(n)
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return at(n, "%s: expected a list, found %s", what, kindName(n))
	}
	for i, item := range n.Content {
		if err := visit(i, item); err != nil {
			return err
		}
	}
	return nil
}

// each reads a list of texts.
func each[T any](n *yaml.Node, what string, list *[]T, parse func(string) (T, error)) error {
	return sequence(n, what, func(i int, item *yaml.Node) error {
		s, err := scalar(item)
		if err != nil {
			return at(item, "%s entry %d: %v", what, i+1, err)
		}
		v, err := parse(s)
		if err != nil {
			return at(item, "%s entry %d: %v", what, i+1, err)
		}
		*list = append(*list, v)
		return nil
	})
}

func text(v encoding.TextUnmarshaler) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		s, err := scalar(n)
		if err != nil {
			return err
		}
		return v.UnmarshalText([]byte(s))
	}
}

func boolean(v *bool) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		s, err := scalar(n)
		if err != nil {
			return err
		}
		if s != "true" && s != "false" {
			return fmt.Errorf("%s is neither true nor false", quote(s))
		}
		*v = s == "true"
		return nil
	}
}

// didYouMean returns a hint when one of the known words is close.
func didYouMean(word string, known []string) string {
	best := spelling.Nearest(word, known)
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}
