// SPDX-License-Identifier: Apache-2.0

package netfencev1_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/netfence/netfence/api/netfence/v1"
)

// TestDescriptors compares the descriptors with the tables of tables_test.go, both ways: nothing listed is missing or
// of another name, number or type, and nothing exists that is not listed.
func TestDescriptors(t *testing.T) {
	services, enums, messages := map[string][]string{}, map[string][]string{}, map[string][]string{}
	protoregistry.GlobalFiles.RangeFilesByPackage("netfence.v1", func(file protoreflect.FileDescriptor) bool {
		if got := file.Syntax(); got != protoreflect.Proto3 {
			t.Errorf("%s: syntax %s, want proto3", file.Path(), got)
		}
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			services[string(s.Name())] = methods(s)
		}
		for i := range file.Enums().Len() {
			e := file.Enums().Get(i)
			enums[string(e.Name())] = values(e)
		}
		for i := range file.Messages().Len() {
			m := file.Messages().Get(i)
			messages[string(m.Name())] = fields(m)
			for j := range m.Enums().Len() {
				t.Errorf("%s: enums are declared at the top level", m.Enums().Get(j).FullName())
			}
			for j := range m.Messages().Len() {
				if nested := m.Messages().Get(j); !nested.IsMapEntry() {
					t.Errorf("%s: messages are declared at the top level", nested.FullName())
				}
			}
		}
		return true
	})
	compare(t, "service", services, publishedServices, addedServices)
	compare(t, "enum", enums, publishedEnums, addedEnums)
	compare(t, "message", messages, publishedMessages, addedMessages)
}

// TestAdditionsAreNumberedFrom100 guards the tables themselves: what is published must not meet what was added.
func TestAdditionsAreNumberedFrom100(t *testing.T) {
	check := func(name, list string, from, below int) {
		for _, entry := range parse(list) {
			var number int
			words := strings.Fields(strings.SplitN(entry, " in ", 2)[0])
			if _, err := fmt.Sscan(words[len(words)-1], &number); err != nil {
				t.Errorf("%s: %q does not end in a number", name, entry)
			}
			if number < from || number >= below {
				t.Errorf("%s: %q is not numbered from %d and below %d", name, entry, from, below)
			}
		}
	}
	for name, list := range publishedMessages {
		check(name, list, 1, 100)
		check(name, addedMessages[name], 100, 1<<29)
	}
	for name, list := range publishedEnums {
		check(name, list, 0, 100)
		check(name, addedEnums[name], 100, 1<<31)
	}
}

func compare(t *testing.T, kind string, got map[string][]string, published, added map[string]string) {
	t.Helper()
	for name, have := range got {
		listed, known := published[name]
		more, also := added[name]
		if !known && !also {
			t.Errorf("%s %s is not listed", kind, name)
			continue
		}
		want := append(parse(listed), parse(more)...)
		for _, entry := range want {
			if !slices.Contains(have, entry) {
				t.Errorf("%s %s: missing: %s", kind, name, entry)
			}
		}
		for _, entry := range have {
			if !slices.Contains(want, entry) {
				t.Errorf("%s %s: not listed: %s", kind, name, entry)
			}
		}
	}
	for _, table := range []map[string]string{published, added} {
		for name := range table {
			if _, ok := got[name]; !ok {
				t.Errorf("%s %s is missing", kind, name)
			}
		}
	}
}

// parse splits a table's text into entries. "oneof x: A a 1, B b 2; C c 3" gives "A a 1 in x", "B b 2 in x", "C c 3".
func parse(list string) []string {
	var entries []string
	for part := range strings.SplitSeq(strings.Join(strings.Fields(list), " "), "; ") {
		suffix := ""
		if rest, ok := strings.CutPrefix(part, "oneof "); ok {
			var name string
			name, part, _ = strings.Cut(rest, ": ")
			suffix = " in " + name
		}
		for entry := range strings.SplitSeq(part, ", ") {
			if entry != "" {
				entries = append(entries, entry+suffix)
			}
		}
	}
	return entries
}

func methods(s protoreflect.ServiceDescriptor) []string {
	var entries []string
	side := func(m protoreflect.MessageDescriptor, stream bool) string {
		if stream {
			return "stream " + short(m.FullName())
		}
		return short(m.FullName())
	}
	for i := range s.Methods().Len() {
		m := s.Methods().Get(i)
		entries = append(entries, fmt.Sprintf("%s(%s) %s", m.Name(),
			side(m.Input(), m.IsStreamingClient()), side(m.Output(), m.IsStreamingServer())))
	}
	return entries
}

func values(e protoreflect.EnumDescriptor) []string {
	var entries []string
	for i := range e.Values().Len() {
		v := e.Values().Get(i)
		entries = append(entries, fmt.Sprintf("%s %d", v.Name(), v.Number()))
	}
	return entries
}

func fields(m protoreflect.MessageDescriptor) []string {
	var entries []string
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		entry := fmt.Sprintf("%s %s %d", typeOf(f), f.Name(), f.Number())
		if oneof := f.ContainingOneof(); oneof != nil {
			entry += " in " + string(oneof.Name())
		}
		entries = append(entries, entry)
	}
	return entries
}

func typeOf(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return fmt.Sprintf("map<%s,%s>", typeOf(f.MapKey()), typeOf(f.MapValue()))
	case f.Kind() == protoreflect.MessageKind:
		return repeated(f) + short(f.Message().FullName())
	case f.Kind() == protoreflect.EnumKind:
		return repeated(f) + short(f.Enum().FullName())
	default:
		return repeated(f) + f.Kind().String()
	}
}

func repeated(f protoreflect.FieldDescriptor) string {
	if f.IsList() {
		return "repeated "
	}
	return ""
}

// short leaves out the two packages that types come from.
func short(name protoreflect.FullName) string {
	s := strings.TrimPrefix(string(name), "netfence.v1.")
	return strings.TrimPrefix(s, "google.protobuf.")
}
