// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "d.sock")
	l, err := Listen(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	_, err = Listen(t.Context(), path, "")
	want := "socket " + path + ": in use: another daemon answers there (stop it, or set another path in the key socket)"
	if err == nil || err.Error() != want {
		t.Errorf("second: got %v, want %s", err, want)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("after close: %v", err)
	}
}

func TestListenReplacesStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	stale := listenStream(t, path)
	stale.(*net.UnixListener).SetUnlinkOnClose(false) // as after kill -9
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenTouchesNothingElse(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{victim, link, dangling, dir} {
		if _, err := Listen(t.Context(), path, ""); err == nil || !strings.Contains(err.Error(), "something else than a socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if data, err := os.ReadFile(victim); err != nil || string(data) != "data" {
		t.Errorf("the victim: %s, %v", data, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "nowhere")); !os.IsNotExist(err) {
		t.Errorf("followed a dangling link: %v", err)
	}
}
