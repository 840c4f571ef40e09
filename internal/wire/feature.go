// SPDX-License-Identifier: Apache-2.0

// Package wire is the only place that maps the messages of netfence.v1 to package policy and back.
//
// What comes in is judged whole: a message with one bad field, an unknown enum value or a field that this build does
// not know is refused, with every reason found, and changes nothing. What goes out is sent whole or not at all: a field
// that the peer has not announced would be ignored there, and a rule without its ports or its end opens more than was
// meant.
package wire

import (
	"fmt"
	"slices"
)

// Feature names one group of additions to the published protocol, as Hello and Welcome list it.
type Feature string

const (
	Ports         Feature = "ports"          // PortRange on address and domain rules
	ExpiresAt     Feature = "expires_at"     // CIDREntry.expires_at
	Private       Feature = "private"        // DomainEntry.private
	Audit         Feature = "audit"          // BulkUpdate.audit
	Replies       Feature = "replies"        // BulkUpdate.replies
	RepliesUDP    Feature = "replies_udp"    // BulkUpdate.replies_udp
	Loopback      Feature = "loopback"       // BulkUpdate.loopback
	Source        Feature = "source"         // BulkUpdate.source
	RefuseWith    Feature = "refuse_with"    // DnsConfig.refuse_with
	Forward       Feature = "forward"        // DnsConfig.forward
	Results       Feature = "results"        // ControlCommand.number and CommandResult
	GoAway        Feature = "go_away"        // ControlCommand.go_away
	NamedPolicies Feature = "named_policies" // put_policy, delete_policy, use_policy
)

// implemented is what this build acts upon. A declared field of any other feature is refused by name: to take it and
// not act on it would be a policy that is not what it says.
var implemented = []Feature{
	Ports, ExpiresAt, Private, Audit, Replies, RepliesUDP, Loopback, Source, RefuseWith, Forward, Results, GoAway, NamedPolicies,
}

// Features lists what this build understands, to announce in Hello and Welcome.
func Features() []string {
	names := make([]string, len(implemented))
	for i, f := range implemented {
		names[i] = string(f)
	}
	return names
}

// Peer is what the other side of a connection has announced. The zero value knows the published protocol only.
type Peer struct {
	features []Feature
}

// NewPeer returns a peer with the features of its Hello or Welcome. Names that this build does not know say nothing.
func NewPeer(names []string) Peer {
	var p Peer
	for _, f := range implemented {
		if slices.Contains(names, string(f)) {
			p.features = append(p.features, f)
		}
	}
	return p
}

// Self is a peer of this very build: the callers of our own RPCs, and the policy folder.
func Self() Peer { return Peer{implemented} }

// Has reports whether the peer announced a feature that this build understands too.
func (p Peer) Has(f Feature) bool { return slices.Contains(p.features, f) }

// Names lists the features.
func (p Peer) Names() []string {
	names := make([]string, len(p.features))
	for i, f := range p.features {
		names[i] = string(f)
	}
	return names
}

// UnsupportedError says that a policy can not be sent to a peer without meaning something else there.
type UnsupportedError struct {
	Field   string // "allow_cidrs[3].ports"
	Feature Feature
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s: the peer did not announce the feature %q", e.Field, e.Feature)
}
