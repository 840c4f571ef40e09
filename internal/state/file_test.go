// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/netfence/netfence/policy"
)

// full is a policy of every kind of rule.
func full() *policy.Policy {
	p := allowlist("10.0.0.0/8", "2001:db8::/32").WithDNSMode(policy.DNSAllowlist)
	p.Replies, p.Loopback = policy.RepliesDeny, policy.LoopbackAllow
	p.Allow[1].Ports = []policy.Ports{{First: 443, Last: 443, Protocol: policy.TCP}, {First: 8000, Last: 8100}}
	p = p.WithDeny(policy.Rule{Prefix: netip.MustParsePrefix("10.0.9.0/24"), TTL: 1e9, ExpiresAt: newClock().wall.Add(1e12)})
	return p.WithAllowDomain(policy.DomainRule{Domain: "pypi.org", IncludeSubdomains: true, Private: true})
}

func TestReopen(t *testing.T) {
	s := newStore(t)
	for n := range 5 {
		a := attachment(n)
		a.Key, a.Metadata = fmt.Sprintf("key-%d", n), map[string]string{"n": fmt.Sprint(n)}
		mustCreate(t, s, a)
		mustApply(t, s, a.ID, full())
	}
	remove := "id-3"
	if _, err := s.Remove(remove, ReasonRemoved, "cgroup is gone"); err != nil {
		t.Fatal(err)
	}
	want := s.List()
	for i := range want {
		if want[i].ID == remove { // what it had is of no more use
			want[i].Policy = policy.BlockAll()
		}
	}
	for range 2 {
		s = reopen(t, s)
		if got := s.List(); !reflect.DeepEqual(got, want) {
			t.Fatalf("reopened:\n%+v\nwant\n%+v", got, want)
		}
		if got := len(s.TakeDirty()); got != len(want) {
			t.Errorf("%d of %d are dirty", got, len(want))
		}
		for _, a := range want {
			if _, st := mustGet(t, s, a.ID); st != (Status{}) {
				t.Errorf("observed before anybody looked: %+v", st)
			}
		}
	}
}

// Of a local caller who waited, nothing is left; the attach is taken back.
func TestReopenHeld(t *testing.T) {
	s := newStore(t)
	for n := range 2 {
		a := attachment(n)
		a.Held = true
		mustCreate(t, s, a)
	}
	if err := s.Release("id-1"); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	if a, _ := mustGet(t, s, "id-1"); a.Held || a.Removing != ReasonNone {
		t.Errorf("released: %+v", a)
	}
	a, _ := mustGet(t, s, "id-0")
	if a.Removing != ReasonError || a.ReasonText == "" || a.Revision != Removal {
		t.Errorf("held: %+v", a)
	}
	if again, _ := mustGet(t, reopen(t, s), "id-0"); !reflect.DeepEqual(again, a) {
		t.Errorf("held, reopened again: %+v, want %+v", again, a)
	}
}

// A daemon that dies between the write and the kernel's refusal is followed by
// one that still knows what was in force.
func TestReopenBeforeRefusal(t *testing.T) {
	good, late, bad := allowlist("10.0.0.0/8"), allowlist("10.1.0.0/16"), allowlist("192.0.2.0/24")
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, s *Store) *Store
		want *policy.Policy
	}{
		{"in force, then changed", func(t *testing.T, s *Store) *Store {
			mustApply(t, s, "id-1", good)
			follow(t, s)
			mustApply(t, s, "id-1", bad)
			return s
		}, good},
		{"changed, then in force", func(t *testing.T, s *Store) *Store {
			mustApply(t, s, "id-1", good)
			follow(t, s)
			mustApply(t, s, "id-1", late)
			d := mustDesired(t, s, "id-1")
			mustApply(t, s, "id-1", bad)
			if err := s.InForce(d); err != nil {
				t.Fatal(err)
			}
			return s
		}, late},
		{"changed twice", func(t *testing.T, s *Store) *Store {
			mustApply(t, s, "id-1", good)
			follow(t, s)
			mustApply(t, s, "id-1", late)
			mustApply(t, s, "id-1", bad)
			return s
		}, good},
		{"changed by the next daemon before it looked", func(t *testing.T, s *Store) *Store {
			mustApply(t, s, "id-1", good)
			follow(t, s)
			s = reopen(t, s)
			mustApply(t, s, "id-1", bad)
			return s
		}, good},
		{"and renamed", func(t *testing.T, s *Store) *Store {
			mustApply(t, s, "id-1", good)
			follow(t, s)
			mustApply(t, s, "id-1", bad)
			renamed := cgroup(1)
			renamed.Name = "/sys/fs/cgroup/other"
			if err := s.SetTarget("id-1", renamed); err != nil {
				t.Fatal(err)
			}
			return s
		}, good},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			mustCreate(t, s, attachment(1))
			s = tc.do(t, s)
			for range 2 {
				s = reopen(t, s)
				if a, _ := mustGet(t, s, "id-1"); !reflect.DeepEqual(a.Policy, bad) {
					t.Fatalf("desired: %+v", a.Policy)
				}
			}
			refuse(t, s)
			a, st := mustGet(t, s, "id-1")
			if !reflect.DeepEqual(a.Policy, tc.want) || a.Pending || st.InForce != nil {
				t.Errorf("after the refusal: %+v, %+v", a, st)
			}
			follow(t, s) // it is dirty, as this daemon has not seen it in force
			if _, st := mustGet(t, s, "id-1"); !reflect.DeepEqual(st.InForce, tc.want) || !errors.Is(st.LastError, errFull) {
				t.Errorf("at the end: %+v", st)
			}
		})
	}
}

// The file holds no more policies than the attachments need.
func TestFileDoesNotGather(t *testing.T) {
	s := newStore(t)
	for n := range 3 {
		mustCreate(t, s, attachment(n))
		for i := range 10 {
			mustApply(t, s, fmt.Sprintf("id-%d", n), allowlist(fmt.Sprintf("10.%d.0.0/16", i)))
			if i%3 == 0 {
				follow(t, s)
			}
		}
	}
	if _, err := s.Remove("id-1", ReasonDetached, ""); err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	keys := 0
	err := s.file.db.View(func(tx *bbolt.Tx) error {
		keys = tx.Bucket(attachmentsBucket).Stats().KeyN
		return nil
	})
	if err != nil || keys > 2*3 { // of each a record, what is desired, what was in force
		t.Errorf("%d keys, %v", keys, err)
	}
}

func TestFileMode(t *testing.T) {
	s := newStore(t)
	info, err := os.Stat(s.file.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestInUse(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	_, err := Open(s.file.path, thisBoot, Options{})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), s.file.path) {
		t.Errorf("second opener: %v", err)
	}
	mustCreate(t, s, attachment(2)) // the first does not notice
}

func TestOtherBoot(t *testing.T) {
	s := newStore(t)
	mustCreate(t, s, attachment(1))
	path := s.file.path
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next, err := Open(path, "another boot", Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if next.Len() != 0 {
		t.Errorf("attachments of another boot: %+v", next.List())
	}
	if aside, err := os.ReadFile(path + ".previous"); err != nil || !bytes.Equal(aside, before) {
		t.Errorf("the file set aside is not the one that was there: %v", err)
	}
}

// What cannot be understood is left alone, with an error that says where it is.
func TestCorrupt(t *testing.T) {
	edit := func(change func(*bbolt.Tx) error) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Update(change), db.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	put := func(bucket []byte, key, value string) func(t *testing.T, path string) {
		return edit(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), []byte(value)) })
	}
	overwrite := func(at int64, with []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt(with, at)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(text string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(size int64) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, damage := range map[string]func(t *testing.T, path string){
		"text":               write("not a database\n"),
		"text of some pages": write(strings.Repeat("netfence", 8192)),
		"directory": func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
		"truncated to 1":        truncate(1),
		"truncated to 2 pages":  truncate(2 * 4096),
		"truncated to 5 pages":  truncate(5 * 4096),
		"both meta pages":       overwrite(0, make([]byte, 2*4096)),
		"data zeroed":           overwrite(2*4096, make([]byte, 64*4096)),
		"data scribbled":        overwrite(2*4096, bytes.Repeat([]byte{0xff}, 64*4096)),
		"newer format":          put(metaBucket, "format", "2"),
		"no boot id, no format": edit(func(tx *bbolt.Tx) error { return tx.DeleteBucket(metaBucket) }),
		"record":                put(attachmentsBucket, "id-1", "{"),
		"empty record":          put(attachmentsBucket, "id-1", "{}"),
		"unknown field":         put(attachmentsBucket, "id-1", `{"id":"id-1","only_on_sundays":true}`),
		"record of another":     put(attachmentsBucket, "id-1", `{"id":"id-2"}`),
		"no policy":             edit(func(tx *bbolt.Tx) error { return dropPolicies(tx.Bucket(attachmentsBucket), "id-1") }),
		"policy":                put(attachmentsBucket, string(policyKey("id-1", 2)), `{"mode":"allow-most"}`),
		"two of one target": edit(func(tx *bbolt.Tx) error {
			value := bytes.ReplaceAll(tx.Bucket(attachmentsBucket).Get([]byte("id-1")), []byte("id-1"), []byte("id-9"))
			policy := tx.Bucket(attachmentsBucket).Get(policyKey("id-1", 2))
			return errors.Join(tx.Bucket(attachmentsBucket).Put([]byte("id-9"), value),
				tx.Bucket(attachmentsBucket).Put(policyKey("id-9", 2), bytes.Clone(policy)))
		}),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			for n := range 20 {
				mustCreate(t, s, attachment(n))
				mustApply(t, s, fmt.Sprintf("id-%d", n), full())
			}
			path := s.file.path
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, path)
			before, _ := os.ReadFile(path)

			s, err := Open(path, thisBoot, Options{})
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) {
				if err == nil {
					s.Close()
				}
				t.Fatalf("opened: %v", err)
			}
			if corrupt.Path != path || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "detach --all") {
				t.Errorf("neither place nor next step: %v", err)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(after, before) {
				t.Error("the file was changed")
			}
			if _, err := os.Stat(path + ".previous"); err == nil {
				t.Error("the file was set aside")
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "missing", "state.db"), thisBoot, Options{})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "state.db") // its maker died before the first write
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, empty, Options{})
}
