// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// document is as much of openapi.yaml as tests look at.
type document struct {
	Paths      map[string]map[string]yaml.Node
	Components struct {
		Schemas map[string]struct {
			Required   []string
			Properties map[string]struct{ Type string }
		}
	}
}

type operation struct {
	Responses map[string]yaml.Node
	Security  *[]any
}

func readDocument(t *testing.T) (document, map[string]operation) {
	t.Helper()
	var d document
	if err := yaml.Unmarshal(openAPI, &d); err != nil {
		t.Fatal(err)
	}
	operations := make(map[string]operation)
	for path, methods := range d.Paths {
		for method, node := range methods {
			if method == "parameters" {
				continue
			}
			var o operation
			if err := node.Decode(&o); err != nil {
				t.Fatal(err)
			}
			operations[strings.ToUpper(method)+" "+path] = o
		}
	}
	return d, operations
}

// TestOpenAPIRoutes: the document has the operations that are served, and says which of them are free.
func TestOpenAPIRoutes(t *testing.T) {
	_, operations := readDocument(t)
	for _, r := range (&api{}).routes() {
		key := r.method + " " + r.path
		o, ok := operations[key]
		if !ok {
			t.Errorf("%s is served and not in openapi.yaml", key)
		}
		if open := o.Security != nil && len(*o.Security) == 0; open != (r.access == free) {
			t.Errorf("%s: openapi.yaml says that it is free: %v", key, open)
		}
		if _, ok := o.Responses["403"]; ok != (r.access == change) {
			t.Errorf("%s: openapi.yaml says that it changes something: %v", key, ok)
		}
		delete(operations, key)
	}
	for key := range operations {
		t.Errorf("%s is in openapi.yaml and not served", key)
	}
}

// TestOpenAPISchemas: the schemas have the fields that are sent, of the same types, and require those that always are.
func TestOpenAPISchemas(t *testing.T) {
	d, _ := readDocument(t)
	records := map[string]any{
		"Error": errorRecord{}, "Change": changeRecord{}, "Policy": policyRecord{}, "Daemon": daemonRecord{},
		"Attachment": attachmentRecord{}, "Refusal": refusalRecord{},
	}
	kinds := map[reflect.Kind]string{
		reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Uint64: "integer",
		reflect.Map: "object", reflect.Slice: "array", reflect.Struct: "string", // time.Time
	}
	for name, record := range records {
		schema, ok := d.Components.Schemas[name]
		if !ok {
			t.Errorf("openapi.yaml has no %s", name)
			continue
		}
		delete(d.Components.Schemas, name)
		of := reflect.TypeOf(record)
		for i := range of.NumField() {
			key, options, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			property, ok := schema.Properties[key]
			if want := kinds[of.Field(i).Type.Kind()]; !ok || property.Type != want {
				t.Errorf("%s.%s is %q in openapi.yaml, sent as %q", name, key, property.Type, want)
			}
			delete(schema.Properties, key)
			if always := options == ""; always != slices.Contains(schema.Required, key) {
				t.Errorf("%s.%s is always sent: %v; openapi.yaml says otherwise", name, key, always)
			}
		}
		for key := range schema.Properties {
			t.Errorf("%s.%s is in openapi.yaml and not sent", name, key)
		}
	}
	for name := range d.Components.Schemas {
		t.Errorf("%s is in openapi.yaml and no answer's", name)
	}
}

// TestAnswersAreDeclared: who asks without, with a wrong, and with a right token gets what openapi.yaml says.
func TestAnswersAreDeclared(t *testing.T) {
	var daemon string
	s := serve(t, "daemons: {tokens_file: '{dir}/daemons'}", func(dir string) {
		var err error
		if daemon, err = NewToken(dir+"/daemons", "host-1", false); err != nil {
			t.Fatal(err)
		}
	})
	_, operations := readDocument(t)
	for _, r := range (&api{}).routes() {
		path := strings.ReplaceAll(r.path, "{name}", "a.yaml")
		for who, token := range map[string]string{"nobody": "", "wrong": "x", "daemon": daemon, "reader": s.reader, "admin": s.admin} {
			answered := s.request(token, r.method, path, "")
			if _, ok := operations[r.method+" "+r.path].Responses[fmt.Sprint(answered.StatusCode)]; !ok {
				t.Errorf("%s %s as %s: %v is not in openapi.yaml", r.method, path, who, answered)
			}
			admitted := answered.StatusCode != http.StatusUnauthorized && answered.StatusCode != http.StatusForbidden
			want := r.access == free || who == "admin" || who == "reader" && r.access == look
			if admitted != want {
				t.Errorf("%s %s as %s: %v", r.method, path, who, answered)
			}
			if !admitted && answered.StatusCode == http.StatusUnauthorized && answered.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s: no WWW-Authenticate", r.method, path)
			}
			var body errorRecord
			if answered.StatusCode >= 400 && (json.Unmarshal(answered.body, &body) != nil || body.Error == "") {
				t.Errorf("%s %s as %s: no reason: %v", r.method, path, who, answered)
			}
		}
	}
	for _, path := range []string{"/v1/attachments?nonsense=1", "/v1/refusals?metadata=x", "/v1/policies/..yaml", "/v1/policies/a.txt"} {
		if r := s.request(s.admin, "GET", path, ""); r.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %v", path, r)
		}
	}
}
