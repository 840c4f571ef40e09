// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

const (
	// maxReasons bounds the violations and the warnings of one message: what comes in may hold 100,000 bad rules, and
	// the answer must stay small. Those beyond are counted.
	maxReasons = 32
	// maxText bounds one value that is quoted back, in bytes.
	maxText = 256
)

// Violation is one reason to refuse a message.
type Violation struct {
	Field    string // path of the field: "bulk_update.allow_cidrs[3].cidr"
	Value    string // as it came, cut to 256 bytes
	Expected string // what would have been accepted
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: got %q, want %s", v.Field, v.Value, v.Expected)
}

// RefusedError says why a message was refused. Nothing of it was applied.
type RefusedError struct {
	Violations []Violation // the first 32, at least one
	More       int         // violations beyond those
}

// Error shows the first violation: it goes into one line of a log or a status.
func (e *RefusedError) Error() string {
	first := e.Violations[0].String()
	if others := len(e.Violations) - 1 + e.More; others > 0 {
		return fmt.Sprintf("%s (and %d more)", first, others)
	}
	return first
}

// CommandViolations lists why a command was refused, for its CommandResult: by the fields of the command where err is
// of this package or of package policy, else the text alone.
func CommandViolations(cmd *netfencev1.ControlCommand, err error) []*netfencev1.Violation {
	var refused *RefusedError
	if errors.As(err, &refused) { // its paths begin at the command
		return refused.violations("")
	}
	field := commandField(cmd)
	if cmd.GetPutPolicy() != nil {
		field += ".policy"
	}
	return Violations(field, err)
}

// Violations lists why the policy in a field of a request was refused.
func Violations(field string, err error) []*netfencev1.Violation {
	var (
		refused *RefusedError
		invalid *policy.InvalidError
	)
	switch {
	case errors.As(err, &refused):
		return refused.violations(field + ".")
	case errors.As(err, &invalid):
		return []*netfencev1.Violation{{
			Field:    field + "." + policyFields.Replace(invalid.Field),
			Value:    clip(invalid.Value),
			Expected: clip(invalid.Reason),
		}}
	default:
		return []*netfencev1.Violation{{Field: field, Expected: clip(err.Error())}}
	}
}

func (e *RefusedError) violations(prefix string) []*netfencev1.Violation {
	list := make([]*netfencev1.Violation, len(e.Violations))
	for i, v := range e.Violations {
		list[i] = &netfencev1.Violation{Field: strings.TrimSuffix(prefix+v.Field, "."), Value: v.Value, Expected: v.Expected}
	}
	return list
}

// policyFields turns paths of package policy into paths of the protocol.
var policyFields = strings.NewReplacer(
	"dns.allow[", "dns.allow_domains[", "dns.deny[", "dns.deny_domains[", "dns.upstreams[", "dns.upstream_servers[",
	"allow[", "allow_cidrs[", "deny[", "deny_cidrs[",
)

// Applied tells the control plane what is in force: its own revision and, of a named policy, its name for it, and the
// last refusal or failure since.
func Applied(ref Ref, inForce *policy.Policy, last error) *netfencev1.Applied {
	applied := &netfencev1.Applied{Revision: ref.Revision, PolicyName: ref.Name, Audit: inForce.Audit}
	if last != nil {
		applied.Error = clip(last.Error())
	}
	return applied
}

// clip cuts text to a size that can be quoted back, never inside a character.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	end := maxText - len("…")
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}
