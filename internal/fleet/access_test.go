// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/netfence/netfence/controlplane/controlplanetest"
)

// TestCredentialsAreApart: a daemon's token is one daemon's and opens nothing to administer, an administrator's is no
// daemon's; what is taken out of the file is good for nothing.
func TestCredentialsAreApart(t *testing.T) {
	var token string
	s := serve(t, "daemons: {tokens_file: '{dir}/daemons'}", func(dir string) {
		var err error
		if token, err = NewToken(filepath.Join(dir, "daemons"), "host-1", false); err != nil {
			t.Fatal(err)
		}
	})
	conn := s.dial(nil)
	refused := func(what, id, token string) {
		t.Helper()
		d := controlplanetest.New(conn, controlplanetest.Config{ID: id, Token: token})
		defer d.Disconnect()
		if err := d.Reconnect(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: got %v", what, err)
		}
	}
	d := controlplanetest.Connect(t, conn, controlplanetest.Config{ID: "host-1", Token: token})
	d.Attach(t, "veth0", nil)
	refused("no token", "host-2", "")
	refused("another daemon's token", "host-2", token)
	refused("an administrator's token", "host-1", s.admin)
	refused("an administrator's token, under his name", "alice", s.admin)
	refused("the hash in place of the token", "host-1", readLine(t, s, "daemons"))

	if r := s.request(token, "GET", "/v1/daemons", ""); r.StatusCode != http.StatusUnauthorized || !strings.Contains(string(r.body), "daemon's") {
		t.Errorf("a daemon's token at the API: %v", r)
	}
	// Not even when an operator hands out one token for both.
	admins, err := os.ReadFile(filepath.Join(s.dir, "admins"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("admins", string(admins)+readLine(t, s, "daemons")+"\n")
	eventually(t, "the file is read again", func() bool {
		r := s.request(token, "GET", "/v1/daemons", "")
		return r.StatusCode == http.StatusUnauthorized && strings.Contains(string(r.body), "daemon's")
	})

	s.write("daemons", "# nobody\n")
	if err := d.Ended(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the stream whose token was taken back ended with %v", err)
	}
	eventually(t, "a token that was taken back is refused", func() bool {
		again := controlplanetest.New(conn, controlplanetest.Config{ID: "host-1", Token: token})
		defer again.Disconnect()
		return status.Code(again.Reconnect()) == codes.Unauthenticated
	})

	// A file that cannot be used leaves the last good one in force.
	s.write("daemons", "nonsense\n")
	eventually(t, "the broken file is told of", func() bool {
		refused("with a broken file", "host-1", token)
		return strings.Contains(s.log.String(), "line 1: want NAME sha256:HEX")
	})
}

func readLine(t *testing.T, s *served, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestTokenFiles(t *testing.T) {
	sum := "sha256:" + strings.Repeat("ab", 32)
	for text, want := range map[string]string{
		"# comment\n\na " + sum + "\n": "",
		"a":                            "line 1: want NAME",
		"a b":                          `"b" is not sha256`,
		"a sha256:ab":                  "64 hexadecimal digits",
		"a " + sum + " read":           "line 1: want NAME", // daemons have no roles
	} {
		_, err := parseTokens([]byte(text), false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if _, err := parseTokens([]byte("a "+sum+" write"), true); err == nil {
		t.Error("a role that there is not")
	}
	if _, err := NewToken(filepath.Join(t.TempDir(), "f"), "two words", false); err == nil {
		t.Error("a name of two words")
	}
}
