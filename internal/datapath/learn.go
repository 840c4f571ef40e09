// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"time"

	"github.com/netfence/netfence/policy"
)

// ErrStale says that the policy changed between the decision and the call. The
// caller decides anew.
var ErrStale = errors.New("policy has changed meanwhile")

// Member is one attachment that a DNS query concerns, with what is in force for
// it. It is a snapshot.
type Member struct {
	ID    string
	Index uint32
	Names *policy.Names // never nil

	incarnation uint32
	generation  uint32 // of the word that Names came into force with
}

// Lesson is what one answer teaches one attachment.
type Lesson struct {
	Member Member
	Name   string       // canonical: lower case, no final dot
	Grant  policy.Grant // why, and for which ports
	Addrs  []netip.Addr
	TTL    time.Duration // clamped; the grace is added here
}
