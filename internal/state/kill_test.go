// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/netfence/netfence/policy"
)

// A daemon that is killed at any moment has lost nothing that Apply returned for.
func TestKill(t *testing.T) {
	const pathEnv = "NETFENCE_TEST_STATE"
	if path := os.Getenv(pathEnv); path != "" {
		applyForever(path)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	for round := range 10 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), pathEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		acknowledged := ""
		for i := 0; i < 50+17*round && lines.Scan(); i++ {
			acknowledged = lines.Text()
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it told before it died
			acknowledged = lines.Text()
		}
		cmd.Wait() //nolint:errcheck // it was killed

		s := open(t, path, Options{})
		a, _ := mustGet(t, s, "id-1")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// The last change may have been written and not told.
		var want, next int
		if _, err := fmt.Sscan(acknowledged, &want); err != nil {
			t.Fatalf("it told %q: %v", acknowledged, err)
		}
		if _, err := fmt.Sscan(a.PolicyRevision, &next); err != nil || next != want && next != want+1 {
			t.Errorf("change %d was acknowledged, %s is there", want, a.PolicyRevision)
		}
		if !reflect.DeepEqual(a.Policy, numbered(next)) {
			t.Errorf("change %d: %+v", next, a.Policy)
		}
	}
}

func numbered(n int) *policy.Policy {
	p := allowlist()
	for i := range 1 + n%50 { // records of several sizes, some beyond a page
		p = p.WithAllow(policy.Rule{Prefix: netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", n%200, i))})
	}
	return p
}

// applyForever is the daemon that is killed.
func applyForever(path string) {
	s, err := Open(path, thisBoot, Options{})
	if err == nil && s.Len() == 0 {
		_, _, err = s.Create(attachment(1))
	}
	n := 0
	if err == nil {
		var a Attachment
		if a, _, err = s.Get("id-1"); err == nil && a.PolicyRevision != "" {
			_, err = fmt.Sscan(a.PolicyRevision, &n)
		}
	}
	for err == nil {
		n++
		_, err = s.Apply("id-1", "test", Change{Edit: Replace(numbered(n)), PolicyRevision: fmt.Sprint(n)})
		fmt.Println(n)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
