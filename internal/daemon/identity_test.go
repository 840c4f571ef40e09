// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDaemonID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	machine := filepath.Join(t.TempDir(), "machine-id")
	on := func(id string) string {
		t.Helper()
		if err := os.WriteFile(machine, []byte(id+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := daemonID(dir, machine)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := on("0123456789abcdef0123456789abcdef")
	if again := on("0123456789abcdef0123456789abcdef"); again != first {
		t.Errorf("restart: %s became %s", first, again)
	}
	clone := on("fedcba9876543210fedcba9876543210")
	if clone == first {
		t.Error("a clone kept the id")
	}
	if again := on("fedcba9876543210fedcba9876543210"); again != clone {
		t.Errorf("restart of the clone: %s became %s", clone, again)
	}

	path := filepath.Join(dir, "daemon_id")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "fedcba98") {
		t.Error("the file shows the machine-id, which is confidential")
	}
	for _, name := range []string{dir, path} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".daemon_id-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDaemonIDWithoutMachineID(t *testing.T) {
	dir, none := t.TempDir(), filepath.Join(t.TempDir(), "none")
	first, err := daemonID(dir, none)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := daemonID(dir, none); err != nil || again != first {
		t.Errorf("restart: %s became %s, %v", first, again, err)
	}
}

func TestDaemonIDUnreadable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "daemon_id")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := daemonID(dir, "/etc/machine-id")
	if want := "daemon id " + path + ": unreadable (remove the file to get a new id)"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "{" {
		t.Errorf("the file was changed: %s, %v", data, err)
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	held, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lock(dir)
	if err == nil || !strings.Contains(err.Error(), "lock "+filepath.Join(dir, "lock")+": another netfenced holds it") {
		t.Errorf("second lock: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lock(dir)
	if err != nil {
		t.Fatalf("after close: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLockIsNoSymlink(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.Symlink(victim, filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); err == nil {
		t.Error("followed a symbolic link")
	}
	if _, err := os.Lstat(victim); !os.IsNotExist(err) {
		t.Errorf("made %s: %v", victim, err)
	}
}
