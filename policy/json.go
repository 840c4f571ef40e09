// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The JSON form has the wire's field names in snake_case. It is what the
// commands print and what the durable state holds, so it carries deadlines and
// an unknown key is an error: it may be a restriction.

type ruleJSON struct {
	CIDR      netip.Prefix `json:"cidr"`
	Ports     []Ports      `json:"ports,omitempty"`
	TTL       seconds      `json:"ttl,omitempty"`
	ExpiresAt time.Time    `json:"expires_at,omitzero"`
	Deadline  seconds      `json:"deadline,omitempty"`
}

// MarshalJSON writes lists that are empty as [].
func (p Policy) MarshalJSON() ([]byte, error) {
	type plain Policy // without methods
	out := plain(p)
	out.Allow, out.Deny = printed(out.Allow), printed(out.Deny)
	out.RepliesUDP, out.Source = printed(out.RepliesUDP), printed(out.Source)
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes. It checks the syntax only; see
// [Policy.Validate].
func (p *Policy) UnmarshalJSON(b []byte) error {
	type plain Policy
	var in plain
	if err := strictJSON(b, &in); err != nil {
		return err
	}
	in.Allow, in.Deny = absent(in.Allow), absent(in.Deny)
	in.RepliesUDP, in.Source = absent(in.RepliesUDP), absent(in.Source)
	*p = Policy(in)
	return nil
}

// MarshalJSON writes lists that are empty as [].
func (d DNS) MarshalJSON() ([]byte, error) {
	type plain DNS
	out := plain(d)
	out.Allow, out.Deny = printed(out.Allow), printed(out.Deny)
	out.Upstreams, out.Forward = printed(out.Upstreams), printed(out.Forward)
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (d *DNS) UnmarshalJSON(b []byte) error {
	type plain DNS
	var in plain
	if err := strictJSON(b, &in); err != nil {
		return err
	}
	in.Allow, in.Deny = absent(in.Allow), absent(in.Deny)
	in.Upstreams, in.Forward = absent(in.Upstreams), absent(in.Forward)
	*d = DNS(in)
	return nil
}

// MarshalJSON writes durations as seconds ("600s"), as protobuf does.
func (r Rule) MarshalJSON() ([]byte, error) {
	return json.Marshal(ruleJSON{r.Prefix, r.Ports, seconds(r.TTL), r.ExpiresAt, seconds(r.Deadline)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Rule) UnmarshalJSON(b []byte) error {
	var in ruleJSON
	if err := strictJSON(b, &in); err != nil {
		return err
	}
	*r = Rule{in.CIDR, absent(in.Ports), time.Duration(in.TTL), in.ExpiresAt, time.Duration(in.Deadline)}
	return nil
}

func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// printed makes an empty list print as [], not null.
func printed[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// absent makes nothing of an empty list, so that equal policies are equal
// however they came.
func absent[T any](s []T) []T {
	if len(s) == 0 {
		return nil
	}
	return s
}

// seconds is a duration in text like "1.5s", exact to the nanosecond.
type seconds time.Duration

func (d seconds) MarshalText() ([]byte, error) {
	if d < 0 {
		return nil, fmt.Errorf("duration %v is negative", time.Duration(d))
	}
	s := strconv.FormatInt(int64(d)/1e9, 10)
	if rest := int64(d) % 1e9; rest != 0 {
		s += "." + strings.TrimRight(fmt.Sprintf("%09d", rest), "0")
	}
	return []byte(s + "s"), nil
}

func (d *seconds) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = seconds(v)
	return err
}
