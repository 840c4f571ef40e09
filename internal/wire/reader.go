// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// reader collects what is wrong with one message, and where.
type reader struct {
	path     []step
	refused  RefusedError
	warnings []string
	unsaid   int // warnings beyond maxReasons
}

// step is one element of a field path.
type step struct {
	field string
	index int // -1: not an element of a list
}

func (r *reader) enter(field string, index int) { r.path = append(r.path, step{field, index}) }
func (r *reader) leave()                        { r.path = r.path[:len(r.path)-1] }

// at is the path to a field of the message that the reader is in; "" is that message itself.
func (r *reader) at(field string) string {
	var b strings.Builder
	for _, s := range r.path {
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(s.field)
		if s.index >= 0 {
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
		}
	}
	if b.Len() > 0 && field != "" {
		b.WriteByte('.')
	}
	return b.String() + field
}

func (r *reader) refuse(field string, value any, expected string) {
	if len(r.refused.Violations) == maxReasons {
		r.refused.More++
		return
	}
	r.refused.Violations = append(r.refused.Violations,
		Violation{r.at(field), clip(fmt.Sprint(value)), clip(expected)})
}

func (r *reader) warn(field, warning string) {
	if len(r.warnings) == maxReasons {
		r.unsaid++
		return
	}
	r.warnings = append(r.warnings, clip(r.at(field)+": "+warning))
}

// result returns the warnings, or the refusal if there is one.
func (r *reader) result() ([]string, error) {
	if len(r.refused.Violations) > 0 {
		return nil, &r.refused
	}
	if r.unsaid > 0 {
		return append(r.warnings, fmt.Sprintf("and %d more", r.unsaid)), nil
	}
	return r.warnings, nil
}

// unknown refuses fields that this build does not know, in the message and in all that it holds: a newer peer may have
// narrowed with them what we would apply without.
func (r *reader) unknown(m protoreflect.Message) {
	for rest := m.GetUnknown(); len(rest) > 0; {
		number, _, n := protowire.ConsumeField(rest)
		r.refuse("", fmt.Sprintf("field %d", number), "only fields that this version knows")
		rest = rest[n:]
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				r.enter(string(f.Name()), i)
				r.unknown(v.List().Get(i).Message())
				r.leave()
			}
		default:
			r.enter(string(f.Name()), -1)
			r.unknown(v.Message())
			r.leave()
		}
		return true
	})
}
