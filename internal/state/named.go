// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/netfence/netfence/policy"
)

// Named is a policy that a control plane sent once, for the attachments that have it by its name.
type Named struct {
	Name     string
	Revision string // the control plane's name for this content
	Policy   *policy.Policy
}

// named is a Named as it is in the file.
type named struct {
	Named
	serial uint64 // of the policy's one copy there
}

// Applied tells what a change of a named policy was to one of its users.
type Applied struct {
	ID       string
	Revision Revision // to Wait for
	Err      error    // refused; the others have it all the same
}

// ErrNoPolicy says that there is no such named policy.
var ErrNoPolicy = errors.New("no such named policy")

// InUseError says that a named policy is an attachment's.
type InUseError struct {
	Name  string
	Users int
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("policy %q is in use by %d attachments", e.Name, e.Users)
}

// RevisionError says that a named policy has another revision than the change was made for.
type RevisionError struct {
	Name, Asked, Has string
}

func (e *RevisionError) Error() string {
	return fmt.Sprintf("policy %q has revision %q, not %q", e.Name, e.Has, e.Asked)
}

// NamedPolicies returns the named policies that there are, by name.
func (s *Store) NamedPolicies() []Named {
	s.naming.RLock()
	defer s.naming.RUnlock()
	list := make([]Named, 0, len(s.named))
	for _, n := range s.named {
		list = append(list, n.Named)
	}
	slices.SortFunc(list, func(a, b Named) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// NamedPolicy returns the policy of that name; false: there is none.
func (s *Store) NamedPolicy(name string) (Named, bool) {
	s.naming.RLock()
	defer s.naming.RUnlock()
	n, ok := s.named[name]
	return n.Named, ok
}

// PutNamed makes or replaces a named policy, and then makes it desired of each attachment that has it by its name, one
// by one. It returns these once all would survive a crash of the daemon; what a crash left undone, the next Open does.
// An error changes nothing: it is policy's, or says that there are too many.
func (s *Store) PutNamed(source string, p Named) ([]Applied, error) {
	s.naming.Lock()
	err := s.put(&p)
	s.naming.Unlock()
	if err != nil {
		return nil, err
	}
	return s.reapply(source, p.Name), nil
}

func (s *Store) put(p *Named) error {
	if err := p.Policy.Validate(s.limits.Policy); err != nil {
		return err
	}
	common, _, err := s.compile(p.Policy, false)
	if err != nil {
		return err
	}
	p.Policy = common
	had, replaces := s.named[p.Name]
	if replaces && had.Revision == p.Revision && reflect.DeepEqual(had.Policy, p.Policy) {
		return nil
	}
	// As many as there may be attachments: more could not be in use.
	if n := len(s.named) + 1; !replaces && n > s.limits.Attachments {
		return fmt.Errorf("named policies: %w", &LimitError{"limits.attachments", n, s.limits.Attachments})
	}
	serial, err := s.file.put(*p)
	if err != nil {
		return err
	}
	s.named[p.Name] = named{*p, serial}
	return nil
}

// reapply has the users of a named policy follow it.
func (s *Store) reapply(source, name string) []Applied {
	var applied []Applied
	for _, id := range s.users(name) {
		rev, err := s.Apply(id, source, Change{Use: name, users: true})
		if !errors.Is(err, ErrNotFound) {
			applied = append(applied, Applied{id, rev, err})
		}
	}
	return applied
}

// catchUp has every user of a named policy follow it, after a crash between the two.
func (s *Store) catchUp() {
	for name, n := range s.named {
		for _, id := range s.users(name) {
			if a, _, err := s.Get(id); err == nil && (a.PolicyRevision != n.Revision || a.Serial != n.serial) {
				_, err := s.Apply(id, "state file", Change{Use: name, users: true})
				if err != nil {
					s.log.Warn("named policy not applied", "policy", name, "attachment", id, "err", err)
				}
			}
		}
	}
}

// DeleteNamed forgets a named policy. The error is ErrNoPolicy or an *InUseError.
func (s *Store) DeleteNamed(name string) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	if _, ok := s.named[name]; !ok {
		return ErrNoPolicy
	}
	if n := len(s.users(name)); n > 0 {
		return &InUseError{name, n}
	}
	if err := s.file.drop(name); err != nil {
		return err
	}
	delete(s.named, name)
	return nil
}

// users are the attachments that are to have a named policy, in the order of List.
func (s *Store) users(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for _, r := range s.order {
		if r.attachment.PolicyName == name && r.attachment.Removing == ReasonNone {
			ids = append(ids, r.attachment.ID)
		}
	}
	return ids
}

// use finds the named policy that a change asks for. naming is held, shared.
func (s *Store) use(a *Attachment, change Change) (named, error) {
	n, ok := s.named[change.Use]
	switch {
	case change.users && a.PolicyName != change.Use:
		return named{}, ErrNotFound // it is no user any more
	case !ok:
		return named{}, ErrNoPolicy
	case change.UseRevision != "" && change.UseRevision != n.Revision:
		return named{}, &RevisionError{n.Name, change.UseRevision, n.Revision}
	}
	return n, nil
}
