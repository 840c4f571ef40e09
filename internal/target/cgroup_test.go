// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// remounted moves the hierarchy of its own mount namespace to another place, and looks where it is before and after.
var remounted = testenv.NewFunc("remounted", func(args []string) error {
	before, err := Cgroup2Mount()
	if err != nil {
		return err
	}
	if again, err := Cgroup2Mount(); again != before || err != nil {
		return fmt.Errorf("at %s, then at %s: %w", before, again, err)
	}
	if err := unix.Mount("none", args[0], "cgroup2", 0, ""); err != nil {
		return err
	}
	if err := unix.Unmount(before, unix.MNT_DETACH); err != nil {
		return err
	}
	after, err := Cgroup2Mount()
	if err == nil && after != args[0] {
		err = fmt.Errorf("at %s, want %s", after, args[0])
	}
	if err := errors.Join(err, unix.Unmount(args[0], unix.MNT_DETACH)); err != nil {
		return err
	}
	if _, err := Cgroup2Mount(); !errors.Is(err, ErrNoCgroup2) {
		return fmt.Errorf("mounted nowhere: %w", err)
	}
	return nil
})

func TestCgroup2MountIsLookedForAgain(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	cmd := remounted.Command(t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}

func TestParseMounts(t *testing.T) {
	const table = `22 1 0:20 / /sys rw,nosuid shared:2 - sysfs sysfs rw
31 22 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
38 31 0:30 / /sys/fs/cgroup/unified rw,relatime shared:5 master:1 - cgroup2 cgroup2 rw
40 31 0:30 /../a /mnt/with\040space\134 rw - cgroup2 none rw
nonsense
`
	got, err := parseMounts(strings.NewReader(table))
	want := []mount{{"/sys/fs/cgroup/unified", "/"}, {`/mnt/with space\`, "/../a"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestRelative(t *testing.T) {
	for _, c := range []struct {
		root, file, want string
		ok               bool
	}{
		{"/", "3:cpu:/elsewhere\n0::/a/b\n", "/a/b", true},
		{"/", "0::/\n", "/", true},
		{"/", "0::/..\n", "", false},
		{"/", "0::/../other\n", "", false},
		{"/", "3:cpu:/a\n", "", false},
		{"/", "", "", false},
		{"/a", "0::/a/b\n", "/b", true},
		{"/a", "0::/a\n", "/", true},
		{"/a", "0::/ab\n", "", false},
		{"/..", "0::/../other\n", "/other", true},
	} {
		got, ok := mount{"/mnt", c.root}.relative(c.file)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("root %s, file %q: %q, %t", c.root, c.file, got, ok)
		}
	}
}

func TestResolveCgroup(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	outer := testenv.NewCgroup(t)
	inner := outer.Child(t, "in ner")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(outer.Path, link); err != nil {
		t.Fatal(err)
	}
	want, err := ResolveCgroup(inner.Path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(inner.Path)
	if err != nil {
		t.Fatal(err)
	}
	if want.Type != Cgroup || want.Name != inner.Path || want.Level != 2 || want.CgroupID != st.Sys().(*syscall.Stat_t).Ino {
		t.Errorf("%+v", want)
	}
	for _, path := range []string{inner.Path + "/", outer.Path + "/./in ner", inner.Path + "/../in ner//", link + "/in ner"} {
		if got, err := ResolveCgroup(path); err != nil || got != want {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
}

func TestRefusedCgroups(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	root, err := Cgroup2Mount()
	if err != nil {
		t.Fatal(err)
	}
	cg := testenv.NewCgroup(t)
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	refused := map[string]string{
		"":                         "not an absolute path",
		"job-7":                    "not an absolute path",
		root:                       "the root cgroup",
		root + "/.":                "the root cgroup",
		cg.Path + "/..":            "the root cgroup",
		cg.Path + "/cgroup.procs":  "not a directory",
		cg.Path + "/cgroup.procs/": "not a directory",
		"/":                        "not a cgroup",
		t.TempDir():                "not a cgroup",
		loop:                       "too many links",
		cg.Path + "\x00":           "invalid argument",
	}
	if v1, ok := testenv.CgroupV1Mount(); ok {
		refused[v1] = "cgroup v1"
	}
	for path, cause := range refused {
		_, err := ResolveCgroup(path)
		var invalid *InvalidError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), cause) {
			t.Errorf("%q: %v, want %q", path, err, cause)
		}
		if cause != "the root cgroup" && cause != "not a directory" && !strings.Contains(err.Error(), root) {
			t.Errorf("%q: %v, does not name the mount %s", path, err, root)
		}
	}
	_, err = ResolveCgroup(cg.Path + "/nowhere")
	var missing *NotFoundError
	if !errors.As(err, &missing) {
		t.Errorf("missing: %v", err)
	}
}

func TestResolvePID(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	cg := testenv.NewCgroup(t)
	w := testenv.StartWorkload(t, nil, cg)
	got, err := ResolvePID(w.PID())
	if err != nil || got.Name != cg.Path {
		t.Errorf("%+v, %v", got, err)
	}
	var invalid *InvalidError
	for _, pid := range []int{-1, 0} {
		if _, err := ResolvePID(pid); !errors.As(err, &invalid) {
			t.Errorf("pid %d: %v", pid, err)
		}
	}
	// A kernel thread is in the root cgroup.
	if _, err := ResolvePID(2); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "root cgroup") {
		t.Errorf("kernel thread: %v", err)
	}
	cg.Remove(t)
	var missing *NotFoundError
	if _, err := ResolvePID(1 << 22); !errors.As(err, &missing) { // PID_MAX_LIMIT
		t.Errorf("missing process: %v", err)
	}
}

func TestCurrentCgroup(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	cg := testenv.NewCgroup(t)
	was, err := ResolveCgroup(cg.Path)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := Current(was); err != nil || now != was {
		t.Errorf("%+v, %v", now, err)
	}
	var missing *NotFoundError
	cg.Remove(t)
	if _, err := Current(was); !errors.As(err, &missing) {
		t.Errorf("after its removal: %v", err)
	}
	if err := os.Mkdir(cg.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Current(was); !errors.As(err, &missing) {
		t.Errorf("after another one took its path: %v", err)
	}
}
