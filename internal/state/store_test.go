// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const thisBoot = "5e98d0a6-0000-4000-8000-000000000001"

// fakeClock stands still until it is set.
type fakeClock struct {
	boot time.Duration
	wall time.Time
}

func (c *fakeClock) Boot() time.Duration { return c.boot }
func (c *fakeClock) Wall() time.Time     { return c.wall }

func (c *fakeClock) advance(d time.Duration) { c.boot, c.wall = c.boot+d, c.wall.Add(d) }

func newClock() *fakeClock {
	return &fakeClock{time.Hour, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func open(t testing.TB, path string, opts Options) *Store {
	t.Helper()
	if opts.Clock == nil {
		opts.Clock = newClock()
	}
	opts.Log = slog.New(slog.DiscardHandler)
	s, err := Open(path, thisBoot, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newStore(t testing.TB) *Store {
	return open(t, filepath.Join(t.TempDir(), "state.db"), Options{})
}

// reopen is what a daemon finds that comes after a crash: of the old store
// nothing but the file is left.
func reopen(t testing.TB, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.file.path, Options{Clock: s.clock, Limits: s.limits, Guard: s.guard})
}

func cgroup(n int) target.Target {
	return target.Target{Type: target.Cgroup, Name: fmt.Sprintf("/sys/fs/cgroup/job-%d", n), CgroupID: uint64(1000 + n), Level: 1}
}

func veth(n int) target.Target {
	return target.Target{
		Type: target.Interface, Name: fmt.Sprintf("veth%d", n), Ifindex: 10 + n, NetnsCookie: 1,
		Direction: target.Ingress, LinkKind: "veth", MAC: "02:00:00:00:00:01",
	}
}

func attachment(n int) Attachment {
	return Attachment{
		ID: fmt.Sprintf("id-%d", n), Target: cgroup(n), AttachedAt: time.Unix(int64(n), 0),
		Policy: policy.BlockAll(), Pending: true,
	}
}

func allowlist(prefixes ...string) *policy.Policy {
	p := &policy.Policy{Mode: policy.ModeAllowlist}
	for _, s := range prefixes {
		p = p.WithAllow(policy.Rule{Prefix: netip.MustParsePrefix(s)})
	}
	return p
}

func mustCreate(t testing.TB, s *Store, a Attachment) Attachment {
	t.Helper()
	a, rev, err := s.Create(a)
	if err != nil {
		t.Fatal(err)
	}
	if rev != a.Revision {
		t.Fatalf("Create returned revision %d of an attachment at %d", rev, a.Revision)
	}
	return a
}

func mustApply(t testing.TB, s *Store, id string, p *policy.Policy) Revision {
	t.Helper()
	rev, err := s.Apply(id, "test", Change{Edit: Replace(p), Acknowledge: true})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func mustGet(t testing.TB, s *Store, id string) (Attachment, Status) {
	t.Helper()
	a, st, err := s.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return a, st
}

func mustDesired(t testing.TB, s *Store, id string) Desired {
	t.Helper()
	d, err := s.Desired(id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// follow is a kernel that does all that is desired.
func follow(t testing.TB, s *Store) {
	t.Helper()
	for ids := s.TakeDirty(); len(ids) > 0; ids = s.TakeDirty() {
		for _, id := range ids {
			d := mustDesired(t, s, id)
			report := s.InForce
			if d.Removing {
				report = s.Removed
			}
			if err := report(d); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCreateIsFoundEveryWay(t *testing.T) {
	s := newStore(t)
	a := attachment(1)
	a.Key, a.Metadata, a.Target = "job", map[string]string{"tenant": "acme"}, veth(1)
	want := mustCreate(t, s, a)

	if want.Revision != 1 || want.AttachedAt.Location() != time.UTC {
		t.Errorf("created %+v", want)
	}
	got, st := mustGet(t, s, a.ID)
	if !reflect.DeepEqual(got, want) || st != (Status{}) {
		t.Errorf("Get = %+v, %+v, want %+v and no status", got, st, want)
	}
	if got, ok := s.ByKey("job"); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("ByKey = %+v, %v", got, ok)
	}
	renamed := a.Target
	renamed.Name, renamed.MAC = "eth0", ""
	if got, ok := s.ByTarget(renamed); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("ByTarget after a rename = %+v, %v", got, ok)
	}
	if _, ok := s.ByKey(""); ok {
		t.Error("the empty key finds something")
	}
	if got := s.TakeDirty(); !slices.Equal(got, []string{a.ID}) {
		t.Errorf("dirty: %v", got)
	}
}

func TestCreateRefusals(t *testing.T) {
	limits := Limits{Attachments: 2, MetadataBytes: 10, Policy: policy.Limits{Rules: 1}}
	with := func(change func(*Attachment)) Attachment {
		a := attachment(2)
		change(&a)
		return a
	}
	taken := &TakenError{ID: "id-1", Key: "job"}
	for _, tc := range []struct {
		name string
		a    Attachment
		want any // the error's type, or its value
	}{
		{"no id", with(func(a *Attachment) { a.ID = "" }), nil},
		{"slash in id", with(func(a *Attachment) { a.ID = "a/b" }), nil},
		{"no target", with(func(a *Attachment) { a.Target = target.Target{} }), nil},
		{"same target", with(func(a *Attachment) { a.Target = cgroup(1) }), taken},
		{"same target renamed", with(func(a *Attachment) { a.Target = cgroup(1); a.Target.Name = "/x" }), taken},
		{"same key", with(func(a *Attachment) { a.Key = "job" }), taken},
		{"same id", with(func(a *Attachment) { a.ID = "id-1" }), taken},
		{"metadata", with(func(a *Attachment) { a.Key, a.Metadata = "12345", map[string]string{"abc": "def"} }),
			&LimitError{"limits.metadata_bytes", 11, 10}},
		{"rules", with(func(a *Attachment) { a.Policy = allowlist("10.0.0.0/8", "192.0.2.0/24") }), new(policy.InvalidError)},
		{"mode", with(func(a *Attachment) { a.Policy = &policy.Policy{Mode: 9} }), new(policy.InvalidError)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Limits: limits})
			first := attachment(1)
			first.Key = "job"
			want := []Attachment{mustCreate(t, s, first)}

			_, _, err := s.Create(tc.a)
			var limit *LimitError
			var takenErr *TakenError
			var invalid *policy.InvalidError
			switch want := tc.want.(type) {
			case nil:
				if err == nil {
					t.Error("accepted")
				}
			case *TakenError:
				if !errors.As(err, &takenErr) || *takenErr != *want {
					t.Errorf("err = %v, want %v", err, want)
				}
			case *LimitError:
				if !errors.As(err, &limit) || *limit != *want {
					t.Errorf("err = %v, want %v", err, want)
				}
			case *policy.InvalidError:
				if !errors.As(err, &invalid) {
					t.Errorf("err = %v, want an InvalidError", err)
				}
			}
			if got := s.List(); !reflect.DeepEqual(got, want) {
				t.Errorf("after the error: %+v", got)
			}
			if got := reopen(t, s).List(); !reflect.DeepEqual(got, want) {
				t.Errorf("after the error, in the file: %+v", got)
			}
		})
	}
}

func TestAttachmentsAreLimited(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Limits: Limits{Attachments: 2}})
	mustCreate(t, s, attachment(1))
	mustCreate(t, s, attachment(2))
	var limit *LimitError
	if _, _, err := s.Create(attachment(3)); !errors.As(err, &limit) || *limit != (LimitError{"limits.attachments", 3, 2}) {
		t.Fatalf("third of two: %v", err)
	}
	if _, err := s.Remove("id-1", ReasonDetached, ""); err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	mustCreate(t, s, attachment(3))
}

func TestListIsOrdered(t *testing.T) {
	s := newStore(t)
	for _, n := range []int{3, 1, 5, 2, 4} {
		a := attachment(n)
		a.AttachedAt = time.Unix(int64(n/2), 0) // two share each second
		mustCreate(t, s, a)
	}
	if _, err := s.Remove("id-2", ReasonDetached, ""); err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	for range 2 {
		var ids []string
		for _, a := range s.List() {
			ids = append(ids, a.ID)
		}
		if want := []string{"id-1", "id-3", "id-4", "id-5"}; !slices.Equal(ids, want) || s.Len() != len(want) {
			t.Errorf("List: %v (Len %d), want %v", ids, s.Len(), want)
		}
		s = reopen(t, s)
	}
}

// The index by target must agree with target.Same, or one target has two filters.
func TestIdentityIsSame(t *testing.T) {
	targets := []target.Target{veth(1), veth(2), cgroup(1), cgroup(2)}
	for _, base := range []target.Target{veth(1), cgroup(1)} {
		v := reflect.ValueOf(base)
		for i := range v.NumField() {
			changed := reflect.New(v.Type()).Elem()
			changed.Set(v)
			switch f := changed.Field(i); f.Kind() {
			case reflect.String:
				f.SetString("other")
			case reflect.Int:
				f.SetInt(f.Int() + 77)
			case reflect.Uint64:
				f.SetUint(f.Uint() + 77)
			case reflect.Uint8:
				f.SetUint(3 - f.Uint()) // the other type, the other direction
			case reflect.Bool:
				f.SetBool(!f.Bool())
			default:
				t.Fatalf("target field %s has an unexpected kind", v.Type().Field(i).Name)
			}
			targets = append(targets, changed.Interface().(target.Target))
		}
	}
	for _, a := range targets {
		for _, b := range targets {
			if same := identity(a) == identity(b); same != a.Same(b) {
				t.Errorf("identities equal: %v, Same: %v\n%+v\n%+v", same, a.Same(b), a, b)
			}
		}
	}
}

func TestRename(t *testing.T) {
	s := newStore(t)
	a := attachment(1)
	a.Target = veth(1)
	mustCreate(t, s, a)
	renamed := a.Target
	renamed.Name = "eth7"
	if err := s.SetTarget(a.ID, renamed); err != nil {
		t.Fatal(err)
	}
	if err := s.SetTarget(a.ID, veth(2)); err == nil {
		t.Error("another interface was accepted for a renamed one")
	}
	if got, _ := mustGet(t, reopen(t, s), a.ID); got.Target != renamed {
		t.Errorf("target %+v, want %+v", got.Target, renamed)
	}
}

func TestGone(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{Limits: Limits{Attachments: 3}})
	for n := range 4 {
		mustCreate(t, s, attachment(n))
		id := fmt.Sprintf("id-%d", n)
		if _, err := s.Remove(id, ReasonError, "first"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Remove(id, ReasonDetached, "second"); err != nil {
			t.Fatal(err)
		}
		if got := s.Gone(); len(got) != n {
			t.Errorf("gone before the kernel let go: %v", got)
		}
		follow(t, s)
	}
	var want []Tombstone // the oldest of four has fallen out of three
	for n := 1; n < 4; n++ {
		want = append(want, Tombstone{fmt.Sprintf("id-%d", n), cgroup(n), ReasonError, "first"})
	}
	if got := s.Gone(); !reflect.DeepEqual(got, want) {
		t.Errorf("Gone = %+v, want %+v", got, want)
	}
	s.Forget("id-2")
	if got := s.Gone(); !reflect.DeepEqual(got, []Tombstone{want[0], want[2]}) {
		t.Errorf("after Forget: %+v", got)
	}
}

func TestChanged(t *testing.T) {
	s := newStore(t)
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"create", func() { mustCreate(t, s, attachment(1)) }},
		{"in force", func() { follow(t, s) }},
		{"apply", func() { mustApply(t, s, "id-1", allowlist("10.0.0.0/8")) }},
		{"failed", func() { s.Failed(mustDesired(t, s, "id-1"), errors.New("busy")) }},
		{"release", func() {
			if err := s.Release("id-1"); err != nil {
				t.Fatal(err)
			}
		}},
		{"remove", func() {
			if _, err := s.Remove("id-1", ReasonDetached, ""); err != nil {
				t.Fatal(err)
			}
		}},
		{"gone", func() { follow(t, s) }},
	} {
		changed := s.Changed()
		step.do()
		select {
		case <-changed:
		default:
			t.Errorf("%s woke nobody", step.name)
		}
	}
}
