// SPDX-License-Identifier: Apache-2.0

package state

import (
	"reflect"
	"slices"
	"sync"
	"weak"

	"github.com/netfence/netfence/policy"
)

const (
	// maxShared is how many different policies are looked through for an equal one.
	maxShared = 16
	// keptRules is how large a policy may be that is kept, compiled, for the next
	// attachment. A larger one is shared while somebody has it.
	keptRules = 1000
)

// shared lets attachments have equal policies in common, in memory too: one policy
// file may be that of ten thousand. Rules with deadlines are equal to no others.
type shared struct {
	mu     sync.Mutex
	recent []sharedPolicy // the last asked for in front
}

type sharedPolicy struct {
	policy   weak.Pointer[policy.Policy]
	pending  bool // compiled without the guard
	compiled weak.Pointer[policy.Compiled]
	kept     *policy.Compiled // what compiled points to, or nil
}

// get returns the policy that is equal to p, which may be p, and its compiled form.
func (s *shared) get(p *policy.Policy, pending bool, compile func(*policy.Policy) (*policy.Compiled, error)) (*policy.Policy, *policy.Compiled, error) {
	s.mu.Lock()
	at := slices.IndexFunc(s.recent, func(e sharedPolicy) bool {
		known := e.policy.Value()
		return known != nil && e.pending == pending && (known == p || reflect.DeepEqual(known, p))
	})
	if at >= 0 {
		e := s.recent[at]
		s.recent = slices.Insert(slices.Delete(s.recent, at, at+1), 0, e)
		if known, compiled := e.policy.Value(), e.compiled.Value(); known != nil {
			p = known
			if compiled != nil {
				s.mu.Unlock()
				return p, compiled, nil
			}
		}
	}
	s.mu.Unlock()

	compiled, err := compile(p) // may take a while
	if err != nil {
		return nil, nil, err
	}
	e := sharedPolicy{policy: weak.Make(p), pending: pending, compiled: weak.Make(compiled)}
	if len(p.Allow)+len(p.Deny) <= keptRules {
		e.kept = compiled
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent = slices.DeleteFunc(s.recent, func(old sharedPolicy) bool {
		known := old.policy.Value()
		return known == nil || known == p && old.pending == pending
	})
	s.recent = slices.Insert(s.recent, 0, e)
	if len(s.recent) > maxShared {
		s.recent = slices.Delete(s.recent, maxShared, len(s.recent))
	}
	return p, compiled, nil
}
