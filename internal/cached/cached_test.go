// SPDX-License-Identifier: Apache-2.0

package cached

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// numbered is a policy that tells its number, in several rules that must all be there.
func numbered(n int) *policy.Policy {
	p := &policy.Policy{Mode: policy.ModeAllowlist}
	for i := range 1 + n%40 {
		p = p.WithAllow(policy.Rule{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", n%200, i))})
	}
	return p
}

func mustOpen(t *testing.T, path string, limit int) *Cache {
	t.Helper()
	c, err := Open(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // some are closed before
	return c
}

func put(t *testing.T, c *Cache, key string, p *policy.Policy, at time.Time) {
	t.Helper()
	if err := c.Put([]Entry{{key, p, at}}, time.Hour); err != nil {
		t.Fatal(err)
	}
}

func mustGet(t *testing.T, c *Cache, key string) *policy.Policy {
	t.Helper()
	p, err := c.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.db")
	c := mustOpen(t, path, 3)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 3 {
		put(t, c, fmt.Sprint("job-", i), numbered(7), now.Add(time.Duration(i)*time.Second))
	}
	if n := count(t, c, policiesBucket); n != 1 {
		t.Errorf("%d policies, though all keys have the same", n)
	}
	put(t, c, "job-1", numbered(8), now.Add(time.Minute))
	put(t, c, "job-3", numbered(9), now.Add(time.Minute)) // job-0 is the oldest
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = mustOpen(t, path, 3)
	for key, want := range map[string]*policy.Policy{
		"job-0": nil, "job-1": numbered(8), "job-2": numbered(7), "job-3": numbered(9), "never": nil, "": nil,
	} {
		if got := mustGet(t, c, key); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", key, got, want)
		}
	}
	put(t, c, "job-2", numbered(8), now.Add(time.Hour))
	if n := count(t, c, policiesBucket); n != 2 {
		t.Errorf("%d policies, two are any key's", n)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func count(t *testing.T, c *Cache, bucket []byte) (n int) {
	t.Helper()
	err := c.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(_, _ []byte) error { n++; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A rule that had a minute left has that minute, and not its whole life again.
func TestLivesGoOn(t *testing.T) {
	c := mustOpen(t, filepath.Join(t.TempDir(), "policies.db"), 3)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	prefix := netip.MustParsePrefix("192.0.2.0/24")
	p := &policy.Policy{Mode: policy.ModeAllowlist, Allow: []policy.Rule{{Prefix: prefix, TTL: time.Hour, Deadline: time.Hour + time.Minute}}}
	put(t, c, "job", p, now)
	want := []policy.Rule{{Prefix: prefix, ExpiresAt: now.Add(time.Minute)}}
	if got := mustGet(t, c, "job"); !reflect.DeepEqual(got.Allow, want) {
		t.Errorf("got %+v, want %+v", got.Allow, want)
	}
}

// What cannot be read is set aside, and said; it decides nothing.
func TestDamaged(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.db")
	c := mustOpen(t, good, 3)
	for i := range 30 {
		put(t, c, "job", numbered(i), time.Now())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"nonsense":      func([]byte) []byte { return []byte("nonsense") },
		"cut":           func(b []byte) []byte { return b[:len(b)/3] },
		"zeroed":        func(b []byte) []byte { return make([]byte, len(b)) },
		"another":       func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("10."), []byte("11.")) },
		"a page erased": func(b []byte) []byte { clear(b[2*os.Getpagesize() : 8*os.Getpagesize()]); return b },
	} {
		path := filepath.Join(t.TempDir(), "policies.db")
		if err := os.WriteFile(path, damage(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(path, 3)
		var damaged *DamagedError
		if !errors.As(err, &damaged) || c == nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := mustGet(t, c, "job"); got != nil {
			t.Errorf("%s: has %+v", name, got)
		}
		if _, err := os.Stat(damaged.Path); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What the system refuses is no damage, and nothing is set aside for it.
func TestUnopenable(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none", "policies.db"), 3); !errors.Is(err, os.ErrNotExist) || errors.As(err, new(*DamagedError)) {
		t.Error(err)
	}
	path := filepath.Join(dir, "policies.db")
	c := mustOpen(t, path, 3)
	if _, err := Open(path, 3); err == nil || errors.As(err, new(*DamagedError)) {
		t.Errorf("opened twice: %v", err)
	}
	put(t, c, "job", numbered(1), time.Now())
	if got := mustGet(t, c, "job"); got == nil {
		t.Error("the first lost it")
	}
}

// writer is a daemon that is killed: it puts one number after the other, and says which are on disk.
var writer = testenv.NewFunc("cached-writer", func(args []string) error {
	c, err := Open(args[0], 10)
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		if err := c.Put([]Entry{{"job", numbered(n), time.Now()}, {"other", numbered(n), time.Now()}}, time.Hour); err != nil {
			return err
		}
		fmt.Println(n)
	}
})

// Killed in the middle of writing: what was said to be there is, or what came next, whole, and the same for both keys.
func TestKilledWhileWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.db")
	for round := range 15 {
		cmd := writer.Command(path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		testenv.Start(t, cmd, nil, nil)
		var said int
		for range 3 + round {
			if _, err := fmt.Fscanln(out, &said); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for { // what it had said before the end
			var n int
			if _, err := fmt.Fscanln(out, &n); err != nil {
				break
			}
			said = n
		}
		_ = cmd.Wait() // killed, as it says
		c := mustOpen(t, path, 10)
		job, other := mustGet(t, c, "job"), mustGet(t, c, "other")
		if !reflect.DeepEqual(job, other) {
			t.Errorf("the keys differ: %+v, %+v", job, other)
		}
		if !reflect.DeepEqual(job, numbered(said)) && !reflect.DeepEqual(job, numbered(said+1)) {
			t.Errorf("after %d: %+v", said, job)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
