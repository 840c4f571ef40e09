// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
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
