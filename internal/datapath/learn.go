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
	// version counts what Replace has put in force. The generation of the word
	// would not do: a policy that differs only in its names needs no new word.
	version uint64
}

// Lesson is what one answer teaches one attachment.
type Lesson struct {
	Member Member
	Name   string       // canonical: lower case, no final dot
	Grant  policy.Grant // why, and for which ports
	Addrs  []netip.Addr
	TTL    time.Duration // clamped; the grace is added here
}

// Learned is an address that an attachment may be reached at by name, for one
// set of ports. An address that names teach for different ports is listed for each.
type Learned struct {
	Addr      netip.Addr
	Names     []string       // the newest first
	Ports     []policy.Ports // none: every protocol
	Remaining time.Duration  // of the name that holds longest
}

// Chain returns the attachments that a query of the attachment at index
// concerns, the innermost first. None: the index is nobody's, or no policy has
// been put in force for it by this daemon.
func (d *Datapath) Chain(index uint32) []Member {
	return nil
}

// Learn permits what the lessons teach and returns when the kernel holds every
// address: callers answer the DNS query afterwards, never before. With an error
// it has permitted nothing. ErrStale: decide anew; ErrFull: a limit, which the
// error names, is reached.
//
// A grant is only ever extended: a shorter TTL does not cut access given before.
func (d *Datapath) Learn(lessons []Lesson) error {
	return errors.New("learn: not there yet")
}

// Learned lists what id has learned and what still holds, by address.
func (d *Datapath) Learned(id string) []Learned {
	return nil
}
