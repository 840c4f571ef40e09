// SPDX-License-Identifier: Apache-2.0

// Package state holds what is wanted of the kernel: the attachments of this
// boot, the policy of each, and how far the kernel has followed.
//
// Data flows one way. Sources (the local API, the control plane) change desired
// state and get a [Revision]; the reconciler takes what is dirty, brings the
// kernel to it and reports; whoever changed something may [Store.Wait] for that.
//
// What is desired is in a file before a change returns, so a daemon that dies at
// any point is followed by one that goes on from there. What was observed of the
// kernel is in memory only, and is observed anew after a start.
package state

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// Revision numbers the changes of one attachment, from 1 on. A revision names a
// change within the life of one daemon only.
type Revision uint64

// Removal is the revision of every removal: nothing follows it.
const Removal Revision = math.MaxUint64

// Attachment is what is desired of one target. It is a snapshot: nobody may
// change its map or its policy.
type Attachment struct {
	ID  string `json:"id"`
	Key string `json:"key,omitempty"` // the caller's own name for it; may be empty

	Target     target.Target     `json:"target"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	AttachedAt time.Time         `json:"attached_at"`

	// Policy is desired, valid and settled, and never nil. While the
	// attachment is pending it is block-all.
	Policy *policy.Policy `json:"-"` // in the file by itself: see file.go
	// PolicyRevision is the control plane's name for Policy; empty: none.
	PolicyRevision string   `json:"policy_revision,omitempty"`
	Revision       Revision `json:"revision"`
	// PolicyName is that of the named policy which Policy is; empty: it is the attachment's alone.
	PolicyName string `json:"policy_name,omitempty"`
	Serial     uint64 `json:"policy_serial,omitempty"` // of that policy in the file

	// OwnPolicy: the policy is that of who attached it. No control plane is
	// told of the attachment, nor may change it.
	OwnPolicy bool `json:"own_policy,omitempty"`
	// Pending: no source has given a policy yet.
	Pending bool `json:"pending,omitempty"`
	// Held: a local caller waits for the attach. A daemon that starts and
	// finds it so rolls the attach back: nobody knows the id.
	Held bool `json:"held,omitempty"`

	// Removing is why the attachment is on its way out, else ReasonNone. It
	// stays in the store until the kernel has let go of it.
	Removing   Reason `json:"removing,omitzero"`
	ReasonText string `json:"reason_text,omitempty"`
}

// Reason says why an attachment ends.
type Reason uint8

const (
	ReasonNone     Reason = iota // it does not end
	ReasonRemoved                // its target is gone
	ReasonDetached               // somebody asked for it
	ReasonError                  // it could not be set up, or not be kept
)

var reasonNames = []string{"none", "removed", "detached", "error"}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// MarshalText encodes the reason by name.
func (r Reason) MarshalText() ([]byte, error) {
	if int(r) >= len(reasonNames) {
		return nil, fmt.Errorf("reason %d: unknown", uint8(r))
	}
	return []byte(r.String()), nil
}

// UnmarshalText accepts what MarshalText makes.
func (r *Reason) UnmarshalText(text []byte) error {
	i := slices.Index(reasonNames, string(text))
	if i < 0 {
		return fmt.Errorf("reason %q: unknown", text)
	}
	*r = Reason(i)
	return nil
}

// Status is what was observed of one attachment since the daemon started.
type Status struct {
	// Applied is the newest revision known to be in force; 0: none yet.
	Applied Revision
	// InForce is the policy of that revision; nil: not known yet.
	InForce *policy.Policy
	// LastError is the last refusal or the last failure to reach the kernel.
	// A later change that is in force clears it.
	LastError error
}

// Tombstone tells of an attachment that is gone, kernel included.
type Tombstone struct {
	ID     string
	Target target.Target
	Reason Reason
	Text   string // what happened, for people; may be empty
}
