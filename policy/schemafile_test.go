// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

const schemaPath = "../docs/policy.schema.json"

func publishedSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(schemaPath)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// valid tells whether the schema takes a file, as an editor sees it.
func valid(t *testing.T, s *jsonschema.Schema, text string) error {
	t.Helper()
	var document any
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(instance)
}

// What the parser takes the published schema takes, and what the schema refuses the parser refuses.
func TestSchemaAgreesWithTheParser(t *testing.T) {
	s := publishedSchema(t)
	for _, tt := range []struct {
		file   string
		schema bool // it takes the file
		parser bool
	}{
		{specFile, true, true},
		{"mode: block-all", true, true},
		{"mode: allowlist\nallow:\nmatch:\nsets:\ntests:\ndns:\n", true, true},
		{"mode: allowlist\nallow: [10.0.0.0/8]\ntests: {allow: [10.0.0.1:443], deny: ['[::1]:53/udp']}", true, true},
		{"mode: allowlist\nallow: [{cidr: 10.0.0.0/8, ports: 443}]", true, true},
		{"mode: allowlist\nallow: [{cidr: 10.0.0.1/8}]", true, false}, // host bits: beyond a schema
		{"mode: allowlist\nallow: [10.0.0.1]\ntests: {deny: [10.0.0.1:443]}", true, false},
		{"allow: []", false, false},
		{"mode: open", false, false},
		{"version: 2\nmode: disabled", false, false},
		{"mode: disabled\npriority: high", false, false},
		{"mode: disabled\naudit: maybe", false, false},
		{"mode: allowlist\nalow: []", false, false},
		{"mode: allowlist\nallow: 10.0.0.0/8", false, false},
		{"mode: allowlist\nallow: [{cidr: 10.0.0.0/8, port: 443}]", false, false},
		{"mode: allowlist\nallow: [{ports: [443]}]", false, false},
		{"mode: allowlist\nallow: [{cidr: 10.0.0.0/8, ports: [x]}]", false, false},
		{"mode: allowlist\nallow: [{cidr: 10.0.0.0/8, ports: []}]", false, false},
		{"mode: allowlist\nallow: [{cidr: 10.0.0.0/8, expires_at: tomorrow}]", false, false},
		{"mode: allowlist\nallow: [{domain: a.example, cidr: 10.0.0.0/8}]", false, false},
		{"mode: allowlist\ndns: {mode: proxy}", false, false},
		{"mode: allowlist\ndns: {mode: allowlist, allow: [{cidr: 10.0.0.0/8}]}", false, false},
		{"mode: allowlist\ndns: {forward: [{zone: corp}]}", false, false},
		{"mode: allowlist\nsets: {a: ['set:b']}", false, false},
		{"mode: allowlist\nsets: {'a b': []}", false, false},
		{"mode: allowlist\ntests: {allow: [10.0.0.1]}", false, false},
		{"mode: allowlist\ntests: {drop: [10.0.0.1:1]}", false, false},
		{"mode: allowlist\nreplies: some", false, false},
		{"mode: allowlist\nloopback: none", false, false},
	} {
		if err := valid(t, s, tt.file); (err == nil) != tt.schema {
			t.Errorf("%s\nschema: %v, want taken %v", tt.file, err, tt.schema)
		}
		if _, err := ParseFile("a.yaml", []byte(tt.file)); (err == nil) != tt.parser {
			t.Errorf("%s\nparser: %v, want taken %v", tt.file, err, tt.parser)
		}
	}
}

// Neither knows a key, or a word, that the other does not: the parser lists them when it is given another.
func TestSchemaKnowsEveryKey(t *testing.T) {
	data, err := os.ReadFile(schemaPath)
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	at := func(path string) map[string]any {
		m := schema
		for name := range strings.SplitSeq(path, "/") {
			m, _ = m[name].(map[string]any)
		}
		return m
	}
	keys := func(path string) []string { return slices.Sorted(maps.Keys(at(path))) }
	words := func(path string) (list []string) {
		for _, word := range at(path)["enum"].([]any) {
			list = append(list, word.(string))
		}
		slices.Sort(list)
		return list
	}
	for _, tt := range []struct {
		file string // with a word that nobody knows
		want []string
	}{
		{"mode: allowlist\nqqqqqqqqqqqq: 1", keys("properties")},
		{"mode: allowlist\ndns: {qqqqqqqqqqqq: 1}", keys("properties/dns/properties")},
		{"mode: allowlist\ndns: {forward: [{qqqqqqqqqqqq: 1}]}", keys("properties/dns/properties/forward/items/properties")},
		{"mode: allowlist\ntests: {qqqqqqqqqqqq: 1}", keys("properties/tests/properties")},
		{"mode: allowlist\nallow: [{qqqqqqqqqqqq: 1}]", keys("$defs/address/properties")},
		{"mode: allowlist\nallow: [{domain: a.example, qqqqqqqqqqqq: 1}]", keys("$defs/name/properties")},
		{"mode: qqqqqqqqqqqq", words("properties/mode")},
		{"mode: allowlist\nreplies: qqqqqqqqqqqq", words("properties/replies")},
		{"mode: allowlist\nloopback: qqqqqqqqqqqq", words("properties/loopback")},
		{"mode: allowlist\ndns: {refuse_with: qqqqqqqqqqqq}", words("properties/dns/properties/refuse_with")},
		// Proxy is a mode, and not one for files.
		{"mode: allowlist\ndns: {mode: qqqqqqqqqqqq}", slices.Sorted(slices.Values(append(words("properties/dns/properties/mode"), "proxy")))},
	} {
		_, err := ParseFile("a.yaml", []byte(tt.file))
		if err == nil {
			t.Fatalf("%s: taken", tt.file)
		}
		_, list, _ := strings.Cut(err.Error(), "(one of ")
		got := strings.Split(strings.TrimSuffix(list, ")"), ", ")
		slices.Sort(got)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s\nthe parser knows %v\nthe schema knows %v", tt.file, got, tt.want)
		}
	}
}
