// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Mode says what happens to a packet that no rule speaks of.
// The zero value is the closed one.
type Mode uint8

const (
	ModeBlockAll  Mode = iota // everything is dropped, whatever the rules say
	ModeAllowlist             // dropped unless an allow rule or a learned address matches
	ModeDenylist              // passes unless a deny rule matches
	ModeDisabled              // passes, counted
)

// DNSMode says what happens to a DNS query that no domain rule speaks of.
// [ModeBlockAll] overrides it: there every query is refused.
type DNSMode uint8

const (
	DNSAllowlist DNSMode = iota // refused unless an allow rule matches
	DNSDenylist                 // answered unless a deny rule matches
	DNSProxy                    // the control plane decides each query
	DNSDisabled                 // queries are not intercepted
)

// Action is what a rule or a mode does with a packet or a query.
type Action uint8

const (
	Deny Action = iota
	Allow
)

// ReplyMode says whether flows that were opened from outside may be answered.
// [ModeBlockAll] has no replies in either.
type ReplyMode uint8

const (
	RepliesDefault ReplyMode = iota // answered in allowlist and denylist modes
	RepliesDeny
)

// LoopbackMode says what a cgroup's workload reaches through the lo device.
type LoopbackMode uint8

const (
	LoopbackOwn   LoopbackMode = iota // its own sockets, what a rule allows, its DNS address, replies
	LoopbackAllow                     // every service of the host
	LoopbackDeny
)

// RefuseCode is the answer to a refused DNS query.
type RefuseCode uint8

const (
	RefuseDefault  RefuseCode = iota // as the daemon's configuration has it
	RefuseNXDomain                   // with a synthetic SOA
	RefuseRefused
)

// enum is the text form of an enumeration, by value.
type enum struct {
	kind  string
	names []string
}

var (
	modes         = enum{"mode", []string{"block-all", "allowlist", "denylist", "disabled"}}
	dnsModes      = enum{"dns mode", []string{"allowlist", "denylist", "proxy", "disabled"}}
	actions       = enum{"action", []string{"deny", "allow"}}
	replyModes    = enum{"replies", []string{"allow", "deny"}}
	loopbackModes = enum{"loopback", []string{"own", "allow", "deny"}}
	refuseCodes   = enum{"refuse_with", []string{"default", "nxdomain", "refused"}}
)

func (e enum) has(v uint8) bool { return int(v) < len(e.names) }

func (e enum) text(v uint8) string {
	if !e.has(v) {
		return fmt.Sprintf("%s(%d)", e.kind, v)
	}
	return e.names[v]
}

func (e enum) marshal(v uint8) ([]byte, error) {
	if !e.has(v) {
		return nil, fmt.Errorf("%s %d: unknown", e.kind, v)
	}
	return []byte(e.names[v]), nil
}

func (e enum) parse(s string) (uint8, error) {
	i := slices.Index(e.names, s)
	if i < 0 {
		return 0, fmt.Errorf("%s %s: unknown (one of %s)", e.kind, quote(s), strings.Join(e.names, ", "))
	}
	return uint8(i), nil
}

// ParseMode reads "block-all", "allowlist", "denylist" or "disabled".
func ParseMode(s string) (Mode, error) {
	v, err := modes.parse(s)
	return Mode(v), err
}

// ParseDNSMode reads "allowlist", "denylist", "proxy" or "disabled".
func ParseDNSMode(s string) (DNSMode, error) {
	v, err := dnsModes.parse(s)
	return DNSMode(v), err
}

func (m Mode) String() string               { return modes.text(uint8(m)) }
func (m Mode) MarshalText() ([]byte, error) { return modes.marshal(uint8(m)) }
func (m *Mode) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMode(string(b))
	return err
}

func (m DNSMode) String() string               { return dnsModes.text(uint8(m)) }
func (m DNSMode) MarshalText() ([]byte, error) { return dnsModes.marshal(uint8(m)) }
func (m *DNSMode) UnmarshalText(b []byte) (err error) {
	*m, err = ParseDNSMode(string(b))
	return err
}

func (a Action) String() string               { return actions.text(uint8(a)) }
func (a Action) MarshalText() ([]byte, error) { return actions.marshal(uint8(a)) }
func (a *Action) UnmarshalText(b []byte) error {
	v, err := actions.parse(string(b))
	*a = Action(v)
	return err
}

func (r ReplyMode) String() string               { return replyModes.text(uint8(r)) }
func (r ReplyMode) MarshalText() ([]byte, error) { return replyModes.marshal(uint8(r)) }
func (r *ReplyMode) UnmarshalText(b []byte) error {
	v, err := replyModes.parse(string(b))
	*r = ReplyMode(v)
	return err
}

func (l LoopbackMode) String() string               { return loopbackModes.text(uint8(l)) }
func (l LoopbackMode) MarshalText() ([]byte, error) { return loopbackModes.marshal(uint8(l)) }
func (l *LoopbackMode) UnmarshalText(b []byte) error {
	v, err := loopbackModes.parse(string(b))
	*l = LoopbackMode(v)
	return err
}

func (c RefuseCode) String() string               { return refuseCodes.text(uint8(c)) }
func (c RefuseCode) MarshalText() ([]byte, error) { return refuseCodes.marshal(uint8(c)) }
func (c *RefuseCode) UnmarshalText(b []byte) error {
	v, err := refuseCodes.parse(string(b))
	*c = RefuseCode(v)
	return err
}

// quote shows user input in an error, in one line and cut to a readable length.
func quote(s string) string {
	const longest = 80
	if len(s) > longest {
		return fmt.Sprintf("%q…", s[:longest])
	}
	return fmt.Sprintf("%q", s)
}
