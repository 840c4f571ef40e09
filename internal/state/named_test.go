// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/netfence/netfence/policy"
)

func mustPut(t testing.TB, s *Store, name, revision string, p *policy.Policy) []Applied {
	t.Helper()
	users, err := s.PutNamed("test", Named{name, revision, p})
	if err != nil {
		t.Fatal(err)
	}
	return users
}

func mustUse(t testing.TB, s *Store, id, name string) Revision {
	t.Helper()
	rev, err := s.Apply(id, "test", Change{Use: name, Acknowledge: true})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// keys counts what is in a bucket of the file, but for records.
func keys(t testing.TB, s *Store, name []byte) int {
	t.Helper()
	n := 0
	err := s.file.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(name).ForEach(func(key, _ []byte) error {
			if string(name) != string(attachmentsBucket) || len(key) > len("id-1") {
				n++
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// One policy of many is once in memory, once compiled and once in the file, before and after a start.
func TestNamedPolicyIsOne(t *testing.T) {
	const users = 9
	s := newStore(t)
	mustPut(t, s, "base", "b1", numbered(1))
	for n := range users {
		mustCreate(t, s, attachment(n))
		mustUse(t, s, attachment(n).ID, "base")
	}
	check := func(when, revision string, s *Store, desired, shared int) {
		t.Helper()
		first := mustDesired(t, s, attachment(0).ID)
		for n := range users {
			a, _ := mustGet(t, s, attachment(n).ID)
			d := mustDesired(t, s, a.ID)
			if a.PolicyName != "base" || a.PolicyRevision != revision || a.Policy != first.version.Policy || d.Compiled != first.Compiled {
				t.Errorf("%s: attachment %d: %q %q, policy %p and %p", when, n, a.PolicyName, a.PolicyRevision, a.Policy, first.version.Policy)
			}
		}
		if got := keys(t, s, attachmentsBucket); got != desired {
			t.Errorf("%s: %d policies of attachments in the file, want %d", when, got, desired)
		}
		if got := keys(t, s, sharedBucket); got != shared {
			t.Errorf("%s: %d shared policies in the file, want %d", when, got, shared)
		}
	}
	// Block-all, as all began, is each one's own until the kernel has followed.
	check("used", "b1", s, users, 1)
	follow(t, s)
	check("in force", "b1", s, 0, 1)
	s = reopen(t, s)
	check("started again", "b1", s, 0, 1)

	if list := mustPut(t, s, "base", "b2", numbered(2)); len(list) != users || list[0].Err != nil {
		t.Fatal(list)
	}
	check("replaced", "b2", s, 0, 2) // what is in force is there to go back to
	s = reopen(t, s)
	check("replaced and started again", "b2", s, 0, 2)
	follow(t, s)
	check("followed", "b2", s, 0, 1)
	mustPut(t, s, "base", "b2", numbered(2))
	if ids := s.TakeDirty(); len(ids) != 0 {
		t.Errorf("put again: dirty %v", ids)
	}
	for n := range users {
		mustApply(t, s, attachment(n).ID, allowlist("10.0.0.0/8"))
	}
	if err := s.DeleteNamed("base"); err != nil {
		t.Fatal(err)
	}
	if got := keys(t, s, sharedBucket); got != 1 {
		t.Errorf("%d shared policies while one is in force", got)
	}
	follow(t, s)
	if got := keys(t, s, sharedBucket) + keys(t, s, namedBucket); got != 0 {
		t.Errorf("%d left when nobody has it", got)
	}
	if s = reopen(t, s); len(s.NamedPolicies()) != 0 {
		t.Error(s.NamedPolicies())
	}
}

func TestNamedPolicyErrors(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	mustCreate(t, s, attachment(2))
	mustPut(t, s, "base", "b1", numbered(1))
	mustUse(t, s, "id-1", "base")
	before, _ := mustGet(t, s, "id-1")

	if _, err := s.PutNamed("test", Named{"base", "b2", &policy.Policy{Mode: 77}}); err == nil {
		t.Error("an invalid policy was taken")
	}
	if _, err := s.Apply("id-1", "test", Change{Use: "other"}); !errors.Is(err, ErrNoPolicy) {
		t.Error(err)
	}
	var other *RevisionError
	if _, err := s.Apply("id-2", "test", Change{Use: "base", UseRevision: "b9"}); !errors.As(err, &other) || other.Has != "b1" {
		t.Error(err)
	}
	var used *InUseError
	if err := s.DeleteNamed("base"); !errors.As(err, &used) || used.Users != 1 {
		t.Error(err)
	}
	if err := s.DeleteNamed("other"); !errors.Is(err, ErrNoPolicy) {
		t.Error(err)
	}
	if after, _ := mustGet(t, s, "id-1"); after.Revision != before.Revision || after.Policy != before.Policy {
		t.Errorf("an error changed %+v to %+v", before, after)
	}
	if list := s.NamedPolicies(); len(list) != 1 || list[0].Revision != "b1" {
		t.Error(list)
	}
	s.limits.Attachments = 1
	var limit *LimitError
	if _, err := s.PutNamed("test", Named{"more", "", numbered(3)}); !errors.As(err, &limit) {
		t.Error(err)
	}
}

// A lifetime begins when an attachment gets the rule, whenever the policy came, and is not renewed with the policy.
func TestNamedPolicyWithLifetimes(t *testing.T) {
	timed := func(more ...string) *policy.Policy {
		p := allowlist(more...)
		return p.WithAllow(policy.Rule{Prefix: netip.MustParsePrefix("192.0.2.0/24"), TTL: time.Minute})
	}
	clock := newClock()
	s := open(t, t.TempDir()+"/state.db", Options{Clock: clock})
	mustPut(t, s, "base", "b1", timed())
	want := map[string]time.Duration{}
	for n := range 2 {
		mustCreate(t, s, attachment(n))
		mustUse(t, s, attachment(n).ID, "base")
		want[attachment(n).ID] = clock.boot + time.Minute
		clock.advance(time.Second)
	}
	follow(t, s)
	mustPut(t, s, "base", "b2", timed("10.0.0.0/8"))
	follow(t, s)
	s = reopen(t, s)
	for id, deadline := range want {
		a, _ := mustGet(t, s, id)
		if len(a.Policy.Allow) != 2 || a.Policy.Allow[1].Deadline != deadline || a.PolicyRevision != "b2" {
			t.Errorf("%s: %q %+v, want the deadline %v", id, a.PolicyRevision, a.Policy.Allow, deadline)
		}
	}
}

// What the kernel refuses is not what the others have; what was in force stays, whatever became of its name.
func TestNamedPolicyRefused(t *testing.T) {
	s := newStore(t)
	mustPut(t, s, "base", "b1", numbered(1))
	mustCreate(t, s, attachment(1))
	mustUse(t, s, "id-1", "base")
	follow(t, s)
	mustPut(t, s, "base", "b2", numbered(2))
	d := mustDesired(t, s, "id-1")
	if back, err := s.Refused(d, errFull); !back || err != nil {
		t.Fatal(back, err)
	}
	check := func(when string) {
		t.Helper()
		if a, _ := mustGet(t, s, "id-1"); a.PolicyName != "base" || a.PolicyRevision != "b1" || a.Policy.Allow[0].Prefix != numbered(1).Allow[0].Prefix {
			t.Errorf("%s: %+v", when, a)
		}
	}
	check("refused")
	// The next start tries again: the kernel may have room by then.
	s = reopen(t, s)
	if a, _ := mustGet(t, s, "id-1"); a.PolicyRevision != "b2" {
		t.Errorf("started again: %+v", a)
	}
	if back, err := s.Refused(mustDesired(t, s, "id-1"), errFull); !back || err != nil {
		t.Fatal(back, err)
	}
	check("refused again")

	mustApply(t, s, "id-1", numbered(3))
	if err := s.DeleteNamed("base"); err != nil {
		t.Fatal(err)
	}
	if back, err := s.Refused(mustDesired(t, s, "id-1"), errFull); !back || err != nil {
		t.Fatal(back, err)
	}
	check("back at one whose name is gone")
	s = reopen(t, s)
	check("and started again")
}

// A crash between the policy and its users: the next start goes on.
func TestNamedPolicyCrash(t *testing.T) {
	s := newStore(t)
	mustPut(t, s, "base", "b1", numbered(1))
	for n := range 3 {
		mustCreate(t, s, attachment(n))
		mustUse(t, s, attachment(n).ID, "base")
	}
	follow(t, s)
	p := Named{"base", "b2", numbered(2)}
	if err := s.put(&p); err != nil { // as PutNamed begins
		t.Fatal(err)
	}
	if _, err := s.Apply("id-1", "test", Change{Use: "base", users: true}); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	for n := range 3 {
		if a, _ := mustGet(t, s, fmt.Sprint("id-", n)); a.PolicyRevision != "b2" || a.Policy.Allow[0].Prefix != numbered(2).Allow[0].Prefix {
			t.Errorf("%d: %+v", n, a)
		}
	}
	follow(t, s)
	if got := keys(t, s, sharedBucket); got != 1 {
		t.Errorf("%d shared policies", got)
	}
}
