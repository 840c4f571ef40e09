// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

//go:embed testdata/getaddrinfo.c
var getaddrinfoSource []byte

// compilers of getaddrinfo.c, by the C library that its program uses.
var compilers = map[Resolver]func() (string, error){
	Glibc: sync.OnceValues(func() (string, error) { return compile("gcc") }),
	Musl:  sync.OnceValues(func() (string, error) { return compile("musl-gcc", "-static") }),
}

// programsEnv names a directory with what Getaddrinfo has compiled elsewhere, under the
// names of the libraries: for machines without a compiler.
const programsEnv = "NETFENCE_TEST_GETADDRINFO"

// Getaddrinfo returns the path of a program that was compiled for this process.
func Getaddrinfo(libc Resolver) (string, error) {
	if dir := os.Getenv(programsEnv); dir != "" {
		return filepath.Join(dir, string(libc)), nil
	}
	return compilers[libc]()
}

// compile returns a path that holds as long as this process lives, and leaves nothing behind.
func compile(compiler string, flags ...string) (string, error) {
	dir, err := os.MkdirTemp("", "netfence-build-")
	if err != nil {
		return "", fmt.Errorf("compile getaddrinfo.c: %w", err)
	}
	defer os.RemoveAll(dir)
	source, program := filepath.Join(dir, "getaddrinfo.c"), filepath.Join(dir, "getaddrinfo")
	if err := os.WriteFile(source, getaddrinfoSource, 0o600); err != nil {
		return "", fmt.Errorf("compile getaddrinfo.c: %w", err)
	}
	if out, err := exec.Command(compiler, append(flags, "-O1", "-Wall", "-Werror", "-o", program, source)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile getaddrinfo.c by %s: %w\n%s", compiler, err, out)
	}
	file, err := os.Open(program)
	if err != nil {
		return "", fmt.Errorf("compile getaddrinfo.c: %w", err)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), keep(file)), nil
}

// kept files stay open: a finalizer would close them.
var (
	keptMu sync.Mutex
	kept   []*os.File
)

func keep(file *os.File) uintptr {
	keptMu.Lock()
	defer keptMu.Unlock()
	kept = append(kept, file)
	return file.Fd()
}
