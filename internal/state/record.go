// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/netfence/netfence/policy"
)

// record is one attachment in memory.
type record struct {
	// edit serialises changes of the attachment, each from the look at the
	// old policy to the written file.
	edit sync.Mutex

	// What follows is guarded by Store.mu.

	attachment Attachment // desired
	// compiled is the form of attachment.Policy for the kernel. It is
	// dropped once in force, as the kernel then holds it, and made again
	// when somebody asks.
	compiled *policy.Compiled
	// last is the highest revision handed out. It is above attachment's
	// after a refusal.
	last Revision

	// inForce is the version that the kernel was last seen to hold, to go
	// back to; nil: none. After a start it is from the file, and applied is 0.
	inForce *version
	applied Revision // of inForce, when this daemon saw it; else 0
	refused []refusal
	// whole is the last revision that replaced everything, rather than edit what was there.
	whole   Revision
	skipped []span // of revisions of which nothing ever was in force
	// unknown is the highest refused revision that refused has no room for.
	unknown Revision
	// lastError stands until a revision not before healedBy is in force.
	lastError error
	healedBy  Revision

	changed chan struct{} // closed when an outcome may have changed; nil: nobody waits
}

// version is what one revision brought.
type version struct {
	Revision       Revision       `json:"revision"`
	PolicyRevision string         `json:"policy_revision,omitempty"`
	Pending        bool           `json:"pending,omitempty"`
	PolicyName     string         `json:"policy_name,omitempty"`
	Serial         uint64         `json:"policy_serial,omitempty"` // of the shared copy in the file; 0: it has its own
	Policy         *policy.Policy `json:"-"`                       // in the file by itself
}

// same tells whether two versions differ in their number only.
func (v version) same(o version) bool {
	return v.PolicyRevision == o.PolicyRevision && v.Pending == o.Pending && v.PolicyName == o.PolicyName && v.Serial == o.Serial &&
		reflect.DeepEqual(v.Policy, o.Policy)
}

// version is what a desires.
func (a *Attachment) version() version {
	return version{a.Revision, a.PolicyRevision, a.Pending, a.PolicyName, a.Serial, a.Policy}
}

// with is a with another version.
func (a Attachment) with(v version) Attachment {
	a.Revision, a.PolicyRevision, a.Pending, a.Policy = v.Revision, v.PolicyRevision, v.Pending, v.Policy
	a.PolicyName, a.Serial = v.PolicyName, v.Serial
	return a
}

// refusal is of every revision from first to last.
type refusal struct {
	first, last Revision
	err         error
}

// span is of every revision from first to last.
type span struct{ first, last Revision }

// skip notes that nothing of the revisions between applied and whole, which is coming into force or in what is, ever was.
func (r *record) skip(whole Revision) {
	if whole <= r.applied+1 {
		return
	}
	if len(r.skipped) == maxRefusals {
		r.skipped = slices.Delete(r.skipped, 0, 1)
	}
	r.skipped = append(r.skipped, span{r.applied + 1, whole - 1})
}

// maxRefusals bounds the refusals that a record remembers for those who ask late.
const maxRefusals = 16

// refuse gives the revisions from first on that have no outcome yet a refusal.
func (r *record) refuse(first Revision, err error) {
	for ; first <= r.last; first++ {
		if known, _ := r.outcome(first); !known {
			break
		}
	}
	if first > r.last {
		return
	}
	if len(r.refused) == maxRefusals {
		r.unknown = r.refused[0].last
		r.refused = slices.Delete(r.refused, 0, 1)
	}
	r.refused = append(r.refused, refusal{first, r.last, err})
}

var errOutcomeUnknown = errors.New("superseded, and its outcome is no longer known")

// outcome tells whether the fate of rev is known, and what it is.
func (r *record) outcome(rev Revision) (known bool, err error) {
	if rev == Removal {
		return false, nil // until the record is gone
	}
	if rev <= r.unknown {
		return true, fmt.Errorf("revision %d: %w", rev, errOutcomeUnknown)
	}
	for _, refused := range r.refused {
		if refused.first <= rev && rev <= refused.last {
			return true, &RefusedError{rev, refused.err}
		}
	}
	if rev <= r.applied {
		return true, nil
	}
	if r.attachment.Removing != ReasonNone {
		return true, ErrNotFound
	}
	return false, nil
}

func (r *record) status() Status {
	st := Status{Applied: r.applied, LastError: r.lastError}
	if r.applied != 0 {
		st.InForce = r.inForce.Policy
	}
	return st
}

// snapshot of a record that may be nil.
func (r *record) snapshot() (Attachment, bool) {
	if r == nil {
		return Attachment{}, false
	}
	return r.attachment, true
}

func (r *record) compare(other *record) int {
	if c := r.attachment.AttachedAt.Compare(other.attachment.AttachedAt); c != 0 {
		return c
	}
	return strings.Compare(r.attachment.ID, other.attachment.ID)
}
