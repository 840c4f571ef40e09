// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// archive is an initramfs that is being put together: what cpio(5) calls new ASCII.
// It is not compressed, because the emulated processor is slow.
type archive struct {
	bytes.Buffer
	dirs  map[string]bool
	inode int
}

func (a *archive) dir(path string) {
	path = strings.TrimPrefix(path, "/")
	if path == "" || path == "." || a.dirs[path] {
		return
	}
	a.dir(filepath.Dir(path))
	if a.dirs == nil {
		a.dirs = map[string]bool{}
	}
	a.dirs[path] = true
	a.entry(path, 0o040755, nil)
}

func (a *archive) file(path string, mode uint32, content []byte) {
	path = strings.TrimPrefix(path, "/")
	a.dir(filepath.Dir(path))
	a.entry(path, 0o100000|mode, content)
}

func (a *archive) entry(path string, mode uint32, content []byte) {
	a.inode++
	const links = 1
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path)+1, 0, path)
	a.align()
	a.Write(content)
	a.align()
}

func (a *archive) align() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

func (a *archive) end() { a.entry("TRAILER!!!", 0, nil) }

// image is an initramfs: the guest's program, modules of the kernel, and what else a test puts into it.
type image struct {
	archive
	modules []string        // paths in the guest
	has     map[string]bool // paths in the guest of the host's files
}

func newImage(t *testing.T, modules ...string) *image {
	t.Helper()
	m := &image{has: map[string]bool{}}
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "root", "bin", "etc"} {
		m.dir(dir)
	}
	m.file("init", 0o755, build(t, "test/vm/guest", false))
	_, root := kernel(t)
	for _, name := range modules {
		content, err := os.ReadFile(filepath.Join(root, name+".ko"))
		if err != nil {
			t.Fatal(err)
		}
		path := "/modules/" + filepath.Base(name) + ".ko"
		m.file(path, 0o644, content)
		m.modules = append(m.modules, path)
	}
	return m
}

// programs puts programs of the host into /bin, and where they are the libraries that they need.
func (m *image) programs(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		m.program(t, path, "/bin/"+name)
	}
}

func (m *image) program(t *testing.T, path, as string) {
	t.Helper()
	m.copy(t, path, as)
	libraries, err := exec.Command("ldd", path).Output()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) { // 1: it needs none
		t.Fatal(err)
	}
	for _, word := range strings.Fields(string(libraries)) {
		if filepath.IsAbs(word) && word != path+":" {
			m.copy(t, word, word)
		}
	}
}

func (m *image) copy(t *testing.T, path, as string) {
	t.Helper()
	if m.has[as] {
		return
	}
	m.has[as] = true
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m.file(as, 0o755, content)
}
